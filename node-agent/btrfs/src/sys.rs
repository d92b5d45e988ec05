//! The btrfs ioctls, one safe function each: arguments in, the kernel's error number or its answer out.
//! All of the crate's unsafe code lives here; names are not checked and errors get no words here.
//!
//! The structs and numbers are those of the kernel's `include/uapi/linux/btrfs.h`, as
//! `linux-raw-sys` generates them for each architecture.
#![allow(unsafe_code)]

use std::mem::offset_of;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use linux_raw_sys::btrfs::{
    BTRFS_INODE_ITEM_KEY, BTRFS_SUBVOL_RDONLY, btrfs_inode_item, btrfs_ioctl_fs_info_args,
    btrfs_ioctl_get_subvol_info_args, btrfs_ioctl_received_subvol_args, btrfs_ioctl_search_args,
    btrfs_ioctl_search_header, btrfs_ioctl_search_key, btrfs_ioctl_send_args, btrfs_ioctl_timespec,
    btrfs_ioctl_vol_args_v2, btrfs_ioctl_vol_args_v2__bindgen_ty_1 as ArgsUnion,
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
use rustix::ioctl::{Getter, Opcode, Setter, Updater, ioctl};

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

/// What the tree of a subvolume keeps of an inode.
pub(crate) struct InodeItem {
    /// Transaction that made it; tells it from others that had its number before.
    pub(crate) generation: u64,
    /// Type and permissions.
    pub(crate) mode: u32,
}

/// What is kept of `inode` in the subvolume that `fd` is in; ENOENT if it has none of that number.
pub(crate) fn inode_item(fd: BorrowedFd<'_>, inode: u64) -> Result<InodeItem> {
    const OPCODE: Opcode = BTRFS_IOC_TREE_SEARCH as Opcode;
    let mut args = btrfs_ioctl_search_args {
        key: btrfs_ioctl_search_key {
            tree_id: 0, // that of `fd`
            min_objectid: inode,
            max_objectid: inode,
            min_offset: 0,
            max_offset: u64::MAX,
            min_transid: 0,
            max_transid: u64::MAX,
            min_type: BTRFS_INODE_ITEM_KEY,
            max_type: BTRFS_INODE_ITEM_KEY,
            nr_items: 1,
            unused: 0,
            unused1: 0,
            unused2: 0,
            unused3: 0,
            unused4: 0,
        },
        buf: [0; 3992],
    };
    // SAFETY: the opcode reads and writes a btrfs_ioctl_search_args, during the call; the size is
    // asserted above, and any bit pattern is valid in it.
    unsafe { ioctl(fd, Updater::<OPCODE, _>::new(&mut args))? };
    if args.key.nr_items == 0 {
        return Err(Errno::NOENT);
    }
    // A btrfs_ioctl_search_header, then the item, little-endian as on disk.
    let item = args.buf.map(|byte| byte as u8);
    let item = item.get(size_of::<btrfs_ioctl_search_header>()..);
    let item = item.ok_or(Errno::OVERFLOW)?;
    let field = |at: usize| item.get(at..).ok_or(Errno::OVERFLOW);
    let generation = field(offset_of!(btrfs_inode_item, generation))?.first_chunk();
    let mode = field(offset_of!(btrfs_inode_item, mode))?.first_chunk();
    Ok(InodeItem {
        generation: u64::from_le_bytes(*generation.ok_or(Errno::OVERFLOW)?),
        mode: u32::from_le_bytes(*mode.ok_or(Errno::OVERFLOW)?),
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

/// Opens `inode` of the subvolume with the id `subvolume`, which is in the file system of `fd`, for
/// reading. ESTALE if there is none of that number and generation. It needs CAP_DAC_READ_SEARCH.
pub(crate) fn open_inode(
    fd: BorrowedFd<'_>,
    subvolume: u64,
    inode: u64,
    generation: u64,
) -> Result<OwnedFd> {
    const FILEID_BTRFS_WITHOUT_PARENT: i32 = 0x4d;
    let mut handle = InodeHandle {
        bytes: (size_of::<InodeHandle>() - offset_of!(InodeHandle, inode)) as u32,
        kind: FILEID_BTRFS_WITHOUT_PARENT,
        inode,
        subvolume,
        generation: generation as u32, // of which the kernel too keeps the lower half
    };
    let flags = libc::O_RDONLY | libc::O_NOATIME | libc::O_CLOEXEC;
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

/// Appends up to `length` bytes of the file at `offset` to `out`; how many, 0 at the file's end.
pub(crate) fn append(
    fd: BorrowedFd<'_>,
    out: &mut Vec<u8>,
    length: usize,
    offset: u64,
) -> Result<usize> {
    out.reserve(length);
    let end = out.len();
    let room = out.spare_capacity_mut();
    let room = room.get_mut(..length).ok_or(Errno::NOMEM)?;
    let (read, _) = rustix::io::pread(fd, room, offset)?;
    let count = read.len();
    // SAFETY: the `count` bytes behind the old end were just read, and lie within the capacity.
    unsafe { out.set_len(end + count) };
    Ok(count)
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
