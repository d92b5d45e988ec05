//! Whether the running kernel can be asked for extents mode: found out by trying, once per boot.

use std::fs;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::sync::OnceLock;

use icbd_btrfs::{Errno, punches_large_holes};
use rustix::fs::AtFlags;

use crate::durable;
use crate::error::{Error, Result};
use crate::pool::kernel_release;

/// The directory that the probe works in, beside the images.
const SCRATCH: &str = ".icbd-probe";

/// Whether extents mode can be used. The first call on a kernel tries it in `dir`, a directory on
/// btrfs; if that cannot be found out, the kernel's own stream is what always works.
pub(crate) fn extents_work(dir: impl AsFd) -> bool {
    static ANSWER: OnceLock<bool> = OnceLock::new();
    *ANSWER.get_or_init(|| {
        // Gone with the boot; in a container without such a directory each start tries.
        let known = PathBuf::from(format!("/run/icbd-agent.extents-{}", kernel_release()));
        match fs::read(&known).as_deref() {
            Ok(b"yes") => return true,
            Ok(b"no") => return false,
            _ => {}
        }
        let works = try_it(dir).unwrap_or_else(|error| {
            tracing::warn!(%error, "cannot find out whether this kernel can do extents mode");
            false
        });
        let _ = fs::write(known, if works { "yes" } else { "no" });
        works
    })
}

fn try_it(dir: impl AsFd) -> Result<bool> {
    let scratch = durable::make_dir(&dir, SCRATCH, 0o700)?;
    let works = punches_large_holes(&scratch).map_err(Error::blocks(SCRATCH));
    match rustix::fs::unlinkat(&dir, SCRATCH, AtFlags::REMOVEDIR) {
        Ok(()) | Err(Errno::NOENT) => works,
        Err(errno) => Err(Error::io(format!("remove {SCRATCH}"))(errno)),
    }
}
