//! Makes each command from its attributes, each of which it must take, and checks what no file system
//! can hold. The commands themselves are in `command.rs`.

use super::attributes::Attributes;
use super::{Attribute, Command, Compression, Encoded, Kind, MAX_ENCODED, Problem, TreePath};

/// The longest name that an extended attribute can have (`XATTR_NAME_MAX`).
const MAX_XATTR_NAME: usize = 255;

/// The longest target that a symbolic link can have, its closing NUL not counted.
const MAX_TARGET: usize = 4095;

/// The type bits of a mode, and their values for what MKNOD, MKFIFO and MKSOCK make
/// (`include/uapi/linux/stat.h`).
const S_IFMT: u64 = 0o170_000;
const S_IFIFO: u64 = 0o010_000;
const S_IFCHR: u64 = 0o020_000;
const S_IFBLK: u64 = 0o060_000;
const S_IFSOCK: u64 = 0o140_000;

impl<'a> Command<'a> {
    /// Makes the command from its attributes, each of which it must take.
    pub(super) fn parse(
        kind: Kind,
        mut attributes: Attributes<'a>,
    ) -> Result<Command<'a>, Problem> {
        let command = Command::take(kind, &mut attributes)?;
        attributes.finish()?;
        Ok(command)
    }

    fn take(kind: Kind, a: &mut Attributes<'a>) -> Result<Command<'a>, Problem> {
        use Attribute as A;
        Ok(match kind {
            Kind::Subvol => Command::Subvol {
                name: a.name(A::Path)?,
                uuid: a.uuid(A::Uuid)?,
                ctransid: a.u64(A::Ctransid)?,
            },
            Kind::Snapshot => Command::Snapshot {
                name: a.name(A::Path)?,
                uuid: a.uuid(A::Uuid)?,
                ctransid: a.u64(A::Ctransid)?,
                clone_uuid: a.uuid(A::CloneUuid)?,
                clone_ctransid: a.u64(A::CloneCtransid)?,
            },
            Kind::Mkfile => Command::Mkfile {
                path: a.path(A::Path)?,
                ino: a.u64(A::Ino)?,
            },
            Kind::Mkdir => Command::Mkdir {
                path: a.path(A::Path)?,
                ino: a.u64(A::Ino)?,
            },
            Kind::Mknod => {
                let (path, ino, mode, rdev) = special(a, &[S_IFCHR, S_IFBLK])?;
                Command::Mknod {
                    path,
                    ino,
                    mode,
                    rdev,
                }
            }
            Kind::Mkfifo => {
                let (path, ino, mode, rdev) = special(a, &[S_IFIFO])?;
                Command::Mkfifo {
                    path,
                    ino,
                    mode,
                    rdev,
                }
            }
            Kind::Mksock => {
                let (path, ino, mode, rdev) = special(a, &[S_IFSOCK])?;
                Command::Mksock {
                    path,
                    ino,
                    mode,
                    rdev,
                }
            }
            Kind::Symlink => Command::Symlink {
                path: a.path(A::Path)?,
                ino: a.u64(A::Ino)?,
                target: a.string(A::PathLink, MAX_TARGET, "1 to 4095")?,
            },
            Kind::Rename => Command::Rename {
                path: a.path(A::Path)?,
                to: a.path(A::PathTo)?,
            },
            Kind::Link => Command::Link {
                path: a.path(A::Path)?,
                existing: a.path(A::PathLink)?,
            },
            Kind::Unlink => Command::Unlink {
                path: a.path(A::Path)?,
            },
            Kind::Rmdir => Command::Rmdir {
                path: a.path(A::Path)?,
            },
            Kind::SetXattr => Command::SetXattr {
                path: a.path(A::Path)?,
                name: a.string(A::XattrName, MAX_XATTR_NAME, "1 to 255")?,
                value: a.bytes(A::XattrData)?,
            },
            Kind::RemoveXattr => Command::RemoveXattr {
                path: a.path(A::Path)?,
                name: a.string(A::XattrName, MAX_XATTR_NAME, "1 to 255")?,
            },
            Kind::Write => {
                let data = a.bytes(A::Data)?;
                let offset = a.offset(A::FileOffset, data.len() as u64)?;
                Command::Write {
                    path: a.path(A::Path)?,
                    offset,
                    data,
                }
            }
            Kind::Clone => clone(a)?,
            Kind::Truncate => Command::Truncate {
                path: a.path(A::Path)?,
                size: a.offset(A::Size, 0)?,
            },
            Kind::Chmod => Command::Chmod {
                path: a.path(A::Path)?,
                mode: a.narrow(A::Mode)?,
            },
            Kind::Chown => Command::Chown {
                path: a.path(A::Path)?,
                uid: a.id(A::Uid)?,
                gid: a.id(A::Gid)?,
            },
            Kind::Utimes => Command::Utimes {
                path: a.path(A::Path)?,
                atime: a.timestamp(A::Atime)?,
                mtime: a.timestamp(A::Mtime)?,
                ctime: a.timestamp(A::Ctime)?,
                otime: a.optional_timestamp(A::Otime)?,
            },
            Kind::End => Command::End,
            Kind::UpdateExtent => {
                let length = a.u64(A::Size)?;
                let offset = a.offset(A::FileOffset, length)?;
                Command::UpdateExtent {
                    path: a.path(A::Path)?,
                    offset,
                    length,
                }
            }
            Kind::Fallocate => {
                let length = a.u64(A::Size)?;
                let offset = a.offset(A::FileOffset, length)?;
                let mode = a.u32(A::FallocateMode)?;
                Command::Fallocate {
                    path: a.path(A::Path)?,
                    mode,
                    offset,
                    length,
                }
            }
            Kind::Fileattr => Command::Fileattr {
                path: a.path(A::Path)?,
                flags: a.u64(A::Fileattr)?,
            },
            Kind::EncodedWrite => {
                let encoded = encoded(a)?;
                let offset = a.offset(A::FileOffset, encoded.file_len)?;
                Command::EncodedWrite {
                    path: a.path(A::Path)?,
                    offset,
                    encoded,
                }
            }
        })
    }
}

/// What MKNOD, MKFIFO and MKSOCK carry alike: path, inode number, mode and device.
fn special<'a>(
    a: &mut Attributes<'a>,
    types: &[u64],
) -> Result<(TreePath<'a>, u64, u32, u32), Problem> {
    let path = a.path(Attribute::Path)?;
    let ino = a.u64(Attribute::Ino)?;
    let mode = a.narrow(Attribute::Mode)?;
    if !types.contains(&(u64::from(mode) & S_IFMT)) {
        let wanted = "a mode of the type that the command makes";
        return Err(Problem::Value {
            attribute: Attribute::Mode,
            value: mode.into(),
            wanted,
        });
    }
    Ok((path, ino, mode, a.narrow(Attribute::Rdev)?))
}

fn clone<'a>(a: &mut Attributes<'a>) -> Result<Command<'a>, Problem> {
    use Attribute as A;
    let length = a.u64(A::CloneLen)?;
    if length == 0 {
        // FICLONERANGE takes 0 for "up to the end", which no stream means.
        let wanted = "at least 1";
        return Err(Problem::Value {
            attribute: A::CloneLen,
            value: 0,
            wanted,
        });
    }
    Ok(Command::Clone {
        path: a.path(A::Path)?,
        offset: a.offset(A::FileOffset, length)?,
        length,
        source: a.uuid(A::CloneUuid)?,
        source_ctransid: a.u64(A::CloneCtransid)?,
        source_path: a.path(A::ClonePath)?,
        source_offset: a.offset(A::CloneOffset, length)?,
    })
}

fn encoded<'a>(a: &mut Attributes<'a>) -> Result<Encoded<'a>, Problem> {
    use Attribute as A;
    let data = a.bytes(A::Data)?;
    if data.len() > MAX_ENCODED {
        let wanted = "at most 131072";
        return Err(Problem::Size {
            attribute: A::Data,
            length: data.len(),
            wanted,
        });
    }
    let unencoded_len = a.u64(A::UnencodedLen)?;
    if unencoded_len > MAX_ENCODED as u64 {
        let wanted = "at most 131072";
        return Err(Problem::Value {
            attribute: A::UnencodedLen,
            value: unencoded_len,
            wanted,
        });
    }
    let unencoded_offset = a.u64(A::UnencodedOffset)?;
    let file_len = a.u64(A::UnencodedFileLen)?;
    if unencoded_offset
        .checked_add(file_len)
        .is_none_or(|end| end > unencoded_len)
    {
        return Err(Problem::EncodedRange(
            file_len,
            unencoded_offset,
            unencoded_len,
        ));
    }
    let compression = compression(a.u32(A::Compression)?)?;
    if let Some(encryption @ 1..) = a.optional_u32(A::Encryption)? {
        let wanted = "0, for none";
        let value = encryption.into();
        return Err(Problem::Value {
            attribute: A::Encryption,
            value,
            wanted,
        });
    }
    Ok(Encoded {
        compression,
        data,
        unencoded_len,
        unencoded_offset,
        file_len,
    })
}

fn compression(number: u32) -> Result<Compression, Problem> {
    Ok(match number {
        1 => Compression::Zlib,
        2 => Compression::Zstd,
        // 3 is sectors of 4 KiB; each further one doubles them, up to 64 KiB.
        3..=7 => Compression::Lzo {
            sector: 4096 << (number - 3),
        },
        _ => {
            let wanted = "1 to 7";
            let attribute = Attribute::Compression;
            return Err(Problem::Value {
                attribute,
                value: number.into(),
                wanted,
            });
        }
    })
}
