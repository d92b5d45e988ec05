//! The running hash of a transfer: one XXH3 hash a block, folded with BLAKE3 in stream order.
//! Both ends keep it; it tells whether they speak of the same bytes up to the same position.
//!
//! A block's hash is to tell damage and change, not to withstand anyone: the two ends know each other
//! from TLS, and whoever may send blocks may send any. So it is a fast one.

use std::fmt;

use twox_hash::XxHash3_128;

use super::{BLOCK_HASH_LEN, HASH_LEN};

/// The XXH3 hash of one raw block, of 128 bits, little-endian.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct BlockHash([u8; BLOCK_HASH_LEN]);

impl BlockHash {
    /// Hashes a raw block.
    pub fn of(raw: &[u8]) -> Self {
        Self(XxHash3_128::oneshot(raw).to_le_bytes())
    }

    /// The hash's bytes.
    pub fn as_bytes(&self) -> &[u8; BLOCK_HASH_LEN] {
        &self.0
    }
}

impl From<[u8; BLOCK_HASH_LEN]> for BlockHash {
    fn from(bytes: [u8; BLOCK_HASH_LEN]) -> Self {
        Self(bytes)
    }
}

impl fmt::Display for BlockHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", u128::from_be_bytes(self.0))
    }
}

impl fmt::Debug for BlockHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The hash of everything up to a position: of the chain hash before it, the last block's hash and
/// that block's length. It depends on where the blocks were cut.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct ChainHash([u8; HASH_LEN]);

impl ChainHash {
    /// The hash's bytes.
    pub fn as_bytes(&self) -> &[u8; HASH_LEN] {
        &self.0
    }
}

impl From<[u8; HASH_LEN]> for ChainHash {
    fn from(bytes: [u8; HASH_LEN]) -> Self {
        Self(bytes)
    }
}

impl fmt::Display for ChainHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&blake3::Hash::from_bytes(self.0).to_hex())
    }
}

impl fmt::Debug for ChainHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// How far a transfer is, and the hash of everything up to there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Position {
    /// Raw bytes before this position.
    pub raw: u64,
    /// The chain hash at this position.
    pub chain: ChainHash,
}

impl Position {
    /// The position before the first byte.
    pub const START: Self = Self {
        raw: 0,
        chain: ChainHash([0; HASH_LEN]),
    };

    /// Compares one's own position with the one that the other end claims.
    pub fn compare(&self, theirs: &Self) -> Result<(), Mismatch> {
        if self.raw != theirs.raw {
            return Err(Mismatch::Length {
                ours: self.raw,
                theirs: theirs.raw,
            });
        }
        if self.chain != theirs.chain {
            let (ours, theirs) = (self.chain, theirs.chain);
            return Err(Mismatch::Hash {
                at: self.raw,
                ours,
                theirs,
            });
        }
        Ok(())
    }
}

/// How the positions of the two ends differ.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Mismatch {
    /// They count differently many raw bytes.
    #[error("this end is at raw byte {ours}, the other says {theirs}")]
    Length {
        /// Raw bytes here.
        ours: u64,
        /// Raw bytes there.
        theirs: u64,
    },
    /// The bytes before the position differ.
    #[error("up to raw byte {at} the chain hash is {ours} here, and {theirs} at the other end")]
    Hash {
        /// The position in raw bytes.
        at: u64,
        /// The chain hash here.
        ours: ChainHash,
        /// The chain hash there.
        theirs: ChainHash,
    },
}

/// The running hash: fold in each block, in stream order.
#[derive(Clone, Debug)]
pub struct Chain {
    position: Position,
}

impl Chain {
    /// A chain that goes on from a position: [`Position::START`], or where an earlier attempt got.
    pub fn at(position: Position) -> Self {
        Self { position }
    }

    /// Where the chain is.
    pub fn position(&self) -> Position {
        self.position
    }

    /// Adds the next block.
    pub fn fold(&mut self, hash: BlockHash, raw_len: u32) {
        let mut hasher = blake3::Hasher::new();
        hasher.update(&self.position.chain.0);
        hasher.update(&hash.0);
        hasher.update(&raw_len.to_le_bytes());
        self.position = Position {
            // Only a resume position that somebody made up comes near 2^64; such a chain need only
            // fail to match.
            raw: self.position.raw.saturating_add(u64::from(raw_len)),
            chain: ChainHash(*hasher.finalize().as_bytes()),
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chain_of(blocks: &[&[u8]]) -> Position {
        let mut chain = Chain::at(Position::START);
        for block in blocks {
            chain.fold(BlockHash::of(block), block.len() as u32);
        }
        chain.position()
    }

    #[test]
    fn a_chain_that_goes_on_ends_like_one_that_never_stopped() {
        let mut resumed = Chain::at(chain_of(&[b"one", b"two"]));
        resumed.fold(BlockHash::of(b"three"), 5);
        assert_eq!(resumed.position(), chain_of(&[b"one", b"two", b"three"]));
    }

    #[test]
    fn the_chain_is_the_hash_of_the_one_before_the_block_and_its_length() {
        let (before, block) = ([3; HASH_LEN], [4; BLOCK_HASH_LEN]);
        let mut chain = Chain::at(Position {
            raw: 10,
            chain: before.into(),
        });
        chain.fold(block.into(), 5);
        let expected = blake3::hash(&[&before[..], &block, &[5, 0, 0, 0]].concat());
        assert_eq!(
            chain.position(),
            Position {
                raw: 15,
                chain: (*expected.as_bytes()).into()
            }
        );
    }

    #[test]
    fn a_made_up_position_at_the_end_of_all_numbers_does_not_overflow() {
        let mut chain = Chain::at(Position {
            raw: u64::MAX,
            ..Position::START
        });
        chain.fold(BlockHash::of(b"one"), 3);
        assert_eq!(chain.position().raw, u64::MAX);
    }

    #[test]
    fn order_content_and_cuts_all_count() {
        let right = chain_of(&[b"one", b"two"]);
        assert_eq!(right.raw, 6);
        for other in [
            chain_of(&[b"two", b"one"]),
            chain_of(&[b"onetwo"]),
            chain_of(&[b"on", b"etwo"]),
        ] {
            assert!(matches!(
                right.compare(&other),
                Err(Mismatch::Hash { at: 6, .. })
            ));
        }
        let shorter = chain_of(&[b"one"]);
        assert_eq!(
            right.compare(&shorter),
            Err(Mismatch::Length { ours: 6, theirs: 3 })
        );
        assert_eq!(right.compare(&right), Ok(()));
    }
}
