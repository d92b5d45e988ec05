//! The numbers of commands and attributes on the wire, with their names and the version of the
//! protocol that brought them. What a command carries is in `command.rs`.

use super::Version;

macro_rules! wire_numbers {
    (
        $(#[$doc:meta])*
        $name:ident { $($number:literal $variant:ident $text:literal $since:ident,)* }
    ) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[repr(u16)]
        #[allow(missing_docs)] // Named exactly as in the kernel's header.
        pub enum $name { $($variant = $number,)* }

        impl $name {
            /// All of them, by number.
            pub const ALL: &[$name] = &[$($name::$variant,)*];

            /// The one with this number, if this version of the protocol knows it.
            pub fn from_number(number: u16, version: Version) -> Option<$name> {
                match number {
                    $($number if version >= Version::$since => Some($name::$variant),)*
                    _ => None,
                }
            }

            /// Its number on the wire.
            pub fn number(self) -> u16 {
                self as u16
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(match self { $($name::$variant => $text,)* })
            }
        }
    };
}

wire_numbers! {
    /// The commands (`enum btrfs_send_cmd`).
    Kind {
        1 Subvol "SUBVOL" V1,
        2 Snapshot "SNAPSHOT" V1,
        3 Mkfile "MKFILE" V1,
        4 Mkdir "MKDIR" V1,
        5 Mknod "MKNOD" V1,
        6 Mkfifo "MKFIFO" V1,
        7 Mksock "MKSOCK" V1,
        8 Symlink "SYMLINK" V1,
        9 Rename "RENAME" V1,
        10 Link "LINK" V1,
        11 Unlink "UNLINK" V1,
        12 Rmdir "RMDIR" V1,
        13 SetXattr "SET_XATTR" V1,
        14 RemoveXattr "REMOVE_XATTR" V1,
        15 Write "WRITE" V1,
        16 Clone "CLONE" V1,
        17 Truncate "TRUNCATE" V1,
        18 Chmod "CHMOD" V1,
        19 Chown "CHOWN" V1,
        20 Utimes "UTIMES" V1,
        21 End "END" V1,
        22 UpdateExtent "UPDATE_EXTENT" V1,
        23 Fallocate "FALLOCATE" V2,
        24 Fileattr "FILEATTR" V2,
        25 EncodedWrite "ENCODED_WRITE" V2,
    }
}

wire_numbers! {
    /// The attributes of commands (the anonymous enum of `BTRFS_SEND_A_*`).
    Attribute {
        1 Uuid "UUID" V1,
        2 Ctransid "CTRANSID" V1,
        3 Ino "INO" V1,
        4 Size "SIZE" V1,
        5 Mode "MODE" V1,
        6 Uid "UID" V1,
        7 Gid "GID" V1,
        8 Rdev "RDEV" V1,
        9 Ctime "CTIME" V1,
        10 Mtime "MTIME" V1,
        11 Atime "ATIME" V1,
        12 Otime "OTIME" V1,
        13 XattrName "XATTR_NAME" V1,
        14 XattrData "XATTR_DATA" V1,
        15 Path "PATH" V1,
        16 PathTo "PATH_TO" V1,
        17 PathLink "PATH_LINK" V1,
        18 FileOffset "FILE_OFFSET" V1,
        19 Data "DATA" V1,
        20 CloneUuid "CLONE_UUID" V1,
        21 CloneCtransid "CLONE_CTRANSID" V1,
        22 ClonePath "CLONE_PATH" V1,
        23 CloneOffset "CLONE_OFFSET" V1,
        24 CloneLen "CLONE_LEN" V1,
        25 FallocateMode "FALLOCATE_MODE" V2,
        26 Fileattr "FILEATTR" V2,
        27 UnencodedFileLen "UNENCODED_FILE_LEN" V2,
        28 UnencodedLen "UNENCODED_LEN" V2,
        29 UnencodedOffset "UNENCODED_OFFSET" V2,
        30 Compression "COMPRESSION" V2,
        31 Encryption "ENCRYPTION" V2,
    }
}
