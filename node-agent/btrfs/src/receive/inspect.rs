//! What can be found out about a block before it is its turn, by other threads than the one that carries out
//! commands: whether its compressed extents decompress.

use super::decode::Decoder;
use crate::stream::{BlockReader, Command, MAGIC, Position, Version};

/// What is known of a block.
#[derive(Clone, Copy, Debug, Default)]
pub struct Inspection {
    /// So many of its compressed extents, from the first on, decompress.
    sound: usize,
}

impl Inspection {
    /// Whether it is known that the next compressed extent decompresses.
    pub(super) fn next_is_sound(&mut self) -> bool {
        let known = self.sound > 0;
        self.sound = self.sound.saturating_sub(1);
        known
    }
}

/// Inspects blocks, keeping from one to the next what decompressing needs. One for each thread.
#[derive(Default)]
pub struct Inspector {
    decoder: Decoder,
}

impl Inspector {
    /// Looks at a block of a stream. What is wrong with it, carrying it out will tell.
    pub fn inspect(&mut self, mut block: &[u8]) -> Inspection {
        let mut commands = match block.starts_with(MAGIC) {
            true => BlockReader::begin(),
            // Where in the stream it is only an error would tell.
            false => BlockReader::resume(Version::V2, Position::FIRST_COMMAND),
        };
        let mut inspection = Inspection::default();
        while let Ok(Some(command)) = commands.next_command(&mut block) {
            if let Command::EncodedWrite { encoded, .. } = command {
                if self.decoder.decode(&encoded).is_err() {
                    break;
                }
                inspection.sound += 1;
            }
        }
        inspection
    }
}
