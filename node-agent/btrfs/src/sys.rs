//! The btrfs ioctls, one safe function each: arguments in, the kernel's error number or its answer out.
//! All of the crate's unsafe code lives here; names are not checked and errors get no words here.
//!
//! The structs and numbers are those of the kernel's `include/uapi/linux/btrfs.h`, as
//! `linux-raw-sys` generates them for each architecture.
#![allow(unsafe_code)]

use std::mem::offset_of;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::ptr;

use linux_raw_sys::btrfs::{
    BTRFS_SUBVOL_RDONLY, btrfs_ioctl_encoded_io_args, btrfs_ioctl_fs_info_args,
    btrfs_ioctl_get_subvol_info_args, btrfs_ioctl_received_subvol_args, btrfs_ioctl_search_args,
    btrfs_ioctl_search_key, btrfs_ioctl_send_args, btrfs_ioctl_timespec, btrfs_ioctl_vol_args_v2,
    btrfs_ioctl_vol_args_v2__bindgen_ty_1 as ArgsUnion,
    btrfs_ioctl_vol_args_v2__bindgen_ty_2 as NameUnion,
};
use linux_raw_sys::ctypes::c_char;
use linux_raw_sys::general::file_clone_range;
use linux_raw_sys::ioctl::{
    BTRFS_IOC_FS_INFO, BTRFS_IOC_GET_SUBVOL_INFO, BTRFS_IOC_SEND, BTRFS_IOC_SET_RECEIVED_SUBVOL,
    BTRFS_IOC_SNAP_CREATE_V2, BTRFS_IOC_SNAP_DESTROY_V2, BTRFS_IOC_SUBVOL_CREATE_V2,
    BTRFS_IOC_SUBVOL_GETFLAGS, BTRFS_IOC_SUBVOL_SETFLAGS, BTRFS_IOC_TREE_SEARCH, FICLONERANGE,
};
use rustix::io::{Errno, Result};
use rustix::ioctl::{Getter, Opcode, Setter, Updater, ioctl, opcode};

// An ioctl's number carries the size of its argument in bits 16 to 29, so each of these fails to
// compile where a struct is laid out in another way than the kernel's.
const fn argument_size(opcode: u32) -> usize {
    (opcode as usize >> 16) & 0x3fff
}
const _: () = {
    assert!(argument_size(BTRFS_IOC_SNAP_CREATE_V2) == size_of::<btrfs_ioctl_vol_args_v2>());
    assert!(argument_size(BTRFS_IOC_SNAP_DESTROY_V2) == size_of::<btrfs_ioctl_vol_args_v2>());
    assert!(argument_size(BTRFS_IOC_SUBVOL_CREATE_V2) == size_of::<btrfs_ioctl_vol_args_v2>());
    assert!(argument_size(BTRFS_IOC_SUBVOL_GETFLAGS) == size_of::<u64>());
    assert!(argument_size(BTRFS_IOC_SUBVOL_SETFLAGS) == size_of::<u64>());
    assert!(
        argument_size(BTRFS_IOC_SET_RECEIVED_SUBVOL)
            == size_of::<btrfs_ioctl_received_subvol_args>()
    );
    assert!(argument_size(BTRFS_IOC_SEND) == size_of::<btrfs_ioctl_send_args>());
    assert!(
        argument_size(BTRFS_IOC_GET_SUBVOL_INFO) == size_of::<btrfs_ioctl_get_subvol_info_args>()
    );
    assert!(argument_size(BTRFS_IOC_TREE_SEARCH) == size_of::<btrfs_ioctl_search_args>());
    assert!(argument_size(FICLONERANGE) == size_of::<file_clone_range>());
    assert!(argument_size(BTRFS_IOC_FS_INFO) == size_of::<btrfs_ioctl_fs_info_args>());
};

/// Makes an empty writable subvolume `name` in `dir`.
pub(crate) fn create_subvolume(dir: BorrowedFd<'_>, name: &[u8]) -> Result<()> {
    const OPCODE: Opcode = BTRFS_IOC_SUBVOL_CREATE_V2 as Opcode;
    let args = volume_args(name, 0, 0)?;
    // SAFETY: the opcode takes a btrfs_ioctl_vol_args_v2, which the kernel only reads, during the
    // call; the size is asserted above, and the name ends in NUL.
    unsafe { ioctl(dir, Setter::<OPCODE, _>::new(args)) }
}

/// Makes a snapshot `name` in `dir` of the subvolume that `source` is open on.
pub(crate) fn create_snapshot(
    dir: BorrowedFd<'_>,
    name: &[u8],
    source: BorrowedFd<'_>,
    read_only: bool,
) -> Result<()> {
    const OPCODE: Opcode = BTRFS_IOC_SNAP_CREATE_V2 as Opcode;
    let flags = if read_only {
        u64::from(BTRFS_SUBVOL_RDONLY)
    } else {
        0
    };
    let args = volume_args(name, i64::from(source.as_raw_fd()), flags)?;
    // SAFETY: as in `create_subvolume`; the descriptor in it is borrowed for longer than the call.
    unsafe { ioctl(dir, Setter::<OPCODE, _>::new(args)) }
}

/// Deletes the subvolume `name` in `dir`.
pub(crate) fn destroy_subvolume(dir: BorrowedFd<'_>, name: &[u8]) -> Result<()> {
    const OPCODE: Opcode = BTRFS_IOC_SNAP_DESTROY_V2 as Opcode;
    let args = volume_args(name, 0, 0)?;
    // SAFETY: as in `create_subvolume`.
    unsafe { ioctl(dir, Setter::<OPCODE, _>::new(args)) }
}

/// What the kernel knows of the subvolume that `fd` is in.
pub(crate) fn subvolume_info(fd: BorrowedFd<'_>) -> Result<btrfs_ioctl_get_subvol_info_args> {
    const OPCODE: Opcode = BTRFS_IOC_GET_SUBVOL_INFO as Opcode;
    // SAFETY: the opcode fills a btrfs_ioctl_get_subvol_info_args whole (it copies out a zeroed
    // struct of its own); the size is asserted above, and the struct is plain integers.
    unsafe {
        ioctl(
            fd,
            Getter::<OPCODE, btrfs_ioctl_get_subvol_info_args>::new(),
        )
    }
}

/// Sets or clears the read-only flag of the subvolume that `fd` is open on; other flags stay.
pub(crate) fn set_read_only(fd: BorrowedFd<'_>, read_only: bool) -> Result<()> {
    const GET: Opcode = BTRFS_IOC_SUBVOL_GETFLAGS as Opcode;
    const SET: Opcode = BTRFS_IOC_SUBVOL_SETFLAGS as Opcode;
    // SAFETY: the opcode writes one u64.
    let flags: u64 = unsafe { ioctl(fd, Getter::<GET, u64>::new())? };
    let bit = u64::from(BTRFS_SUBVOL_RDONLY);
    let wanted = if read_only { flags | bit } else { flags & !bit };
    // SAFETY: the opcode reads one u64.
    unsafe { ioctl(fd, Setter::<SET, u64>::new(wanted)) }
}

/// Marks the writable subvolume that `fd` is open on as received; returns its new rtransid.
pub(crate) fn set_received(fd: BorrowedFd<'_>, uuid: [u8; 16], stransid: u64) -> Result<u64> {
    const OPCODE: Opcode = BTRFS_IOC_SET_RECEIVED_SUBVOL as Opcode;
    let never = btrfs_ioctl_timespec { sec: 0, nsec: 0 };
    let mut args = btrfs_ioctl_received_subvol_args {
        uuid: uuid.map(|byte| byte as c_char),
        stransid,
        rtransid: 0,
        stime: never,
        rtime: never,
        flags: 0,
        reserved: [0; 16],
    };
    // SAFETY: the opcode reads and writes a btrfs_ioctl_received_subvol_args, during the call; the
    // size is asserted above, and any bit pattern is valid in it.
    unsafe { ioctl(fd, Updater::<OPCODE, _>::new(&mut args))? };
    Ok(args.rtransid)
}

/// The uuid of the file system that `fd` is in.
pub(crate) fn file_system_id(fd: BorrowedFd<'_>) -> Result<[u8; 16]> {
    const OPCODE: Opcode = BTRFS_IOC_FS_INFO as Opcode;
    let mut args = btrfs_ioctl_fs_info_args {
        max_id: 0,
        num_devices: 0,
        fsid: [0; 16],
        nodesize: 0,
        sectorsize: 0,
        clone_alignment: 0,
        csum_type: 0,
        csum_size: 0,
        flags: 0,
        generation: 0,
        metadata_uuid: [0; 16],
        reserved: [0; 944],
    };
    // SAFETY: the opcode reads and writes a btrfs_ioctl_fs_info_args, during the call; the size is
    // asserted above, and any bit pattern is valid in it.
    unsafe { ioctl(fd, Updater::<OPCODE, _>::new(&mut args))? };
    Ok(args.fsid)
}

/// What to send: the parent and the clone sources by subvolume id, the parent 0 for none.
pub(crate) struct SendArgs<'a> {
    pub(crate) parent: u64,
    pub(crate) clone_sources: &'a mut [u64],
    pub(crate) flags: u64,
    pub(crate) version: u32,
}

/// Writes the send stream of the read-only subvolume `source` into `out`; returns when all is
/// written, or with EPIPE when the reader has gone.
pub(crate) fn send(source: BorrowedFd<'_>, out: BorrowedFd<'_>, what: SendArgs<'_>) -> Result<()> {
    const OPCODE: Opcode = BTRFS_IOC_SEND as Opcode;
    let args = btrfs_ioctl_send_args {
        send_fd: i64::from(out.as_raw_fd()),
        clone_sources_count: what.clone_sources.len() as u64,
        clone_sources: what.clone_sources.as_mut_ptr(),
        parent_root: what.parent,
        flags: what.flags,
        version: what.version,
        reserved: [0; 28],
    };
    // SAFETY: the opcode reads a btrfs_ioctl_send_args, and `clone_sources_count` ids from the
    // pointer in it, during the call; slice and descriptor are borrowed for longer.
    unsafe { ioctl(source, Setter::<OPCODE, _>::new(args)) }
}

/// Makes `length` bytes of `target` at `offset` share the extents of `source` at `source_offset`.
pub(crate) fn clone_range(
    target: BorrowedFd<'_>,
    source: BorrowedFd<'_>,
    source_offset: u64,
    length: u64,
    offset: u64,
) -> Result<()> {
    const OPCODE: Opcode = FICLONERANGE as Opcode;
    let args = file_clone_range {
        src_fd: i64::from(source.as_raw_fd()),
        src_offset: source_offset,
        src_length: length,
        dest_offset: offset,
    };
    // SAFETY: the opcode reads a file_clone_range, during the call; the size is asserted above, and
    // the descriptor in it is borrowed for longer.
    unsafe { ioctl(target, Setter::<OPCODE, _>::new(args)) }
}

/// Room for the items that a search finds at a time.
pub(crate) const SEARCH_ROOM: usize = 3992;

/// The items of one object and one type, from the offset `offsets.0` to `offsets.1` at the most, of the tree of
/// the subvolume that `fd` is in: how many were found, and each as a `btrfs_ioctl_search_header` with the item
/// behind it. At most `most`, and no more than there is room for.
pub(crate) fn search(
    fd: BorrowedFd<'_>,
    (object, item_type): (u64, u32),
    (first, last): (u64, u64),
    most: u32,
) -> Result<(u32, [u8; SEARCH_ROOM])> {
    const OPCODE: Opcode = BTRFS_IOC_TREE_SEARCH as Opcode;
    let mut args = btrfs_ioctl_search_args {
        key: btrfs_ioctl_search_key {
            tree_id: 0, // that of `fd`
            min_objectid: object,
            max_objectid: object,
            min_offset: first,
            max_offset: last,
            min_transid: 0,
            max_transid: u64::MAX,
            min_type: item_type,
            max_type: item_type,
            nr_items: most,
            unused: 0,
            unused1: 0,
            unused2: 0,
            unused3: 0,
            unused4: 0,
        },
        buf: [0; SEARCH_ROOM],
    };
    // SAFETY: the opcode reads and writes a btrfs_ioctl_search_args, during the call; the size is
    // asserted above, and any bit pattern is valid in it.
    unsafe { ioctl(fd, Updater::<OPCODE, _>::new(&mut args))? };
    Ok((args.key.nr_items, args.buf.map(|byte| byte as u8)))
}

/// Which part of which extent an encoded read or write is about, as `btrfs_ioctl_encoded_io_args` has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct EncodedRange {
    /// Bytes of the file that show a part of the extent.
    pub(crate) len: u64,
    /// Bytes of the extent before it was compressed.
    pub(crate) unencoded_len: u64,
    /// Where in these the part begins.
    pub(crate) unencoded_offset: u64,
    /// One of `BTRFS_ENCODED_IO_COMPRESSION_*`.
    pub(crate) compression: u32,
}

/// Reads what stands at `offset` of the file as it is stored, into `buffer`: which part of an extent that is,
/// and how many bytes are stored. ENOBUFS if it does not fit. What is not compressed is read as it is, a hole as
/// zeros. It needs CAP_SYS_ADMIN.
pub(crate) fn encoded_read(
    fd: BorrowedFd<'_>,
    offset: u64,
    buffer: &mut [u8],
) -> Result<(EncodedRange, usize)> {
    const OPCODE: Opcode = opcode::read::<btrfs_ioctl_encoded_io_args>(IOCTL_MAGIC, ENCODED_IO);
    let memory = libc::iovec {
        iov_base: buffer.as_mut_ptr().cast(),
        iov_len: buffer.len(),
    };
    let mut args = encoded_args(&memory, offset)?;
    // SAFETY: the opcode reads and writes a btrfs_ioctl_encoded_io_args, and writes at most as many bytes as
    // the buffer has to where `memory` points, all during the call; all three are borrowed for longer.
    let count = unsafe { libc::ioctl(fd.as_raw_fd(), OPCODE as _, &raw mut args) };
    let count = usize::try_from(count).map_err(|_| last_error())?;
    let range = EncodedRange {
        len: args.len,
        unencoded_len: args.unencoded_len,
        unencoded_offset: args.unencoded_offset,
        compression: args.compression,
    };
    Ok((range, count))
}

/// Makes a compressed extent of `data`, and has the file show `range` of it at `offset`. The kernel does not
/// look at the data, and tells nobody when it cannot be made durable. It needs CAP_SYS_ADMIN.
pub(crate) fn encoded_write(
    fd: BorrowedFd<'_>,
    offset: u64,
    range: &EncodedRange,
    data: &[u8],
) -> Result<()> {
    const OPCODE: Opcode = opcode::write::<btrfs_ioctl_encoded_io_args>(IOCTL_MAGIC, ENCODED_IO);
    let memory = libc::iovec {
        iov_base: data.as_ptr().cast_mut().cast(),
        iov_len: data.len(),
    };
    let mut args = encoded_args(&memory, offset)?;
    args.len = range.len;
    args.unencoded_len = range.unencoded_len;
    args.unencoded_offset = range.unencoded_offset;
    args.compression = range.compression;
    // SAFETY: the opcode reads a btrfs_ioctl_encoded_io_args, and the data that `memory` points to, which it
    // does not change, all during the call; all three are borrowed for longer.
    match unsafe { libc::ioctl(fd.as_raw_fd(), OPCODE as _, &raw const args) } {
        0.. => Ok(()),
        _ => Err(last_error()),
    }
}

/// `BTRFS_IOCTL_MAGIC`.
const IOCTL_MAGIC: u8 = 0x94;

/// The number of `BTRFS_IOC_ENCODED_READ` and `BTRFS_IOC_ENCODED_WRITE`.
const ENCODED_IO: u8 = 64;

fn encoded_args(memory: &libc::iovec, offset: u64) -> Result<btrfs_ioctl_encoded_io_args> {
    Ok(btrfs_ioctl_encoded_io_args {
        iov: ptr::from_ref(memory).cast(),
        iovcnt: 1,
        offset: offset.try_into().map_err(|_| Errno::INVAL)?,
        flags: 0,
        len: 0,
        unencoded_len: 0,
        unencoded_offset: 0,
        compression: 0,
        encryption: 0,
        reserved: [0; 64],
    })
}

/// How btrfs names an inode of a subvolume in file handles (`struct btrfs_fid` of the kernel's
/// `fs/btrfs/export.h`, as far as it goes for FILEID_BTRFS_WITHOUT_PARENT).
#[repr(C, packed(4))]
struct InodeHandle {
    bytes: u32,
    kind: i32,
    inode: u64,
    subvolume: u64,
    generation: u32,
}

/// Whether what is read of a file goes through the page cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Caching {
    Used,
    /// Not where it is whole blocks that are read to whole blocks of memory (`O_DIRECT`).
    Bypassed,
}

/// Opens an inode of a subvolume in the file system of `fd` for reading: the subvolume's id, the inode's number and
/// its generation. ESTALE if there is none of these. It needs CAP_DAC_READ_SEARCH.
pub(crate) fn open_inode(
    fd: BorrowedFd<'_>,
    (subvolume, inode, generation): (u64, u64, u64),
    caching: Caching,
) -> Result<OwnedFd> {
    const FILEID_BTRFS_WITHOUT_PARENT: i32 = 0x4d;
    let mut handle = InodeHandle {
        bytes: (size_of::<InodeHandle>() - offset_of!(InodeHandle, inode)) as u32,
        kind: FILEID_BTRFS_WITHOUT_PARENT,
        inode,
        subvolume,
        generation: generation as u32, // of which the kernel too keeps the lower half
    };
    let past_cache = match caching {
        Caching::Used => 0,
        Caching::Bypassed => libc::O_DIRECT,
    };
    let flags = libc::O_RDONLY | libc::O_NOATIME | libc::O_CLOEXEC | past_cache;
    // SAFETY: the handle begins as a file_handle does, and has as many bytes behind that as it says;
    // the kernel reads it during the call.
    let opened =
        unsafe { libc::open_by_handle_at(fd.as_raw_fd(), (&raw mut handle).cast(), flags) };
    match opened {
        // SAFETY: a descriptor that was just opened, and that nobody else knows.
        0.. => Ok(unsafe { OwnedFd::from_raw_fd(opened) }),
        _ => Err(last_error()),
    }
}

/// Starts writing back the pages of `fd` from `offset` on, and does not wait for it.
pub(crate) fn start_write_back(fd: BorrowedFd<'_>, offset: u64, length: u64) -> Result<()> {
    let (Ok(offset), Ok(length)) = (offset.try_into(), length.try_into()) else {
        return Err(Errno::INVAL);
    };
    // SAFETY: takes and returns integers only; the descriptor is borrowed for longer than the call.
    let result = unsafe {
        libc::sync_file_range(fd.as_raw_fd(), offset, length, libc::SYNC_FILE_RANGE_WRITE)
    };
    match result {
        0 => Ok(()),
        _ => Err(last_error()),
    }
}

/// What the C library says of the call that has just failed.
fn last_error() -> Errno {
    Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO)
}

/// The argument of the calls that name an entry of a directory; `name` gets its NUL here.
fn volume_args(name: &[u8], fd: i64, flags: u64) -> Result<btrfs_ioctl_vol_args_v2> {
    let mut bytes = [0 as c_char; 4040];
    if name.len() >= bytes.len() {
        return Err(Errno::NAMETOOLONG);
    }
    for (to, from) in bytes.iter_mut().zip(name) {
        *to = *from as c_char;
    }
    Ok(btrfs_ioctl_vol_args_v2 {
        fd,
        transid: 0,
        flags,
        __bindgen_anon_1: ArgsUnion { unused: [0; 4] },
        __bindgen_anon_2: NameUnion { name: bytes },
    })
}
