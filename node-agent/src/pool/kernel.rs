//! Which kernels are new enough: send protocol 2 came with Linux 6.0.
//! Single features are probed where they are used.

use icbd_wire::control::PoolState;

use super::Unfit;

const OLDEST: (u32, u32) = (6, 0);

/// The running kernel's release, as `uname -r` says it.
pub(crate) fn release() -> String {
    rustix::system::uname()
        .release()
        .to_string_lossy()
        .into_owned()
}

pub(super) fn check() -> Result<(), Unfit> {
    let release = release();
    match parse(&release) {
        Some(version) if version < OLDEST => {
            let message = format!(
                "the kernel is {release}; {}.{} or newer is needed, for send protocol 2",
                OLDEST.0, OLDEST.1
            );
            Err(Unfit::new(PoolState::KernelTooOld, message))
        }
        // A release that nobody can read is no reason to refuse.
        _ => Ok(()),
    }
}

fn parse(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn releases_compare_by_number_not_by_text() {
        assert_eq!(parse("6.18.44-fc-v657"), Some((6, 18)));
        assert_eq!(parse("5.15.0-91-generic"), Some((5, 15)));
        assert!(parse("5.19") < Some(OLDEST) && parse("6.0-rc1") >= Some(OLDEST));
        assert!(parse("10.2") > parse("9.18"));
        assert_eq!(parse("custom"), None);
    }
}
