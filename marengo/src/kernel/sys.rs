//! What of bpf(2) the BPF library does not offer: reading a whole map in one or two calls, asking a
//! device for its programs by number, and a pinned link for its device.

#![expect(unsafe_code, reason = "system calls that have no safe wrapper")]

use std::{
    collections::BTreeMap,
    ffi::CString,
    io,
    os::{
        fd::{AsFd as _, AsRawFd as _, FromRawFd as _, OwnedFd},
        unix::ffi::OsStrExt as _,
    },
    path::Path,
};

use aya::{
    Pod,
    maps::{HashMap, IterableMap as _, MapData},
};
use nix::{errno::Errno, libc};

/// Entries asked for in one call; doubled if a bucket of the map holds more.
const BATCH: usize = 256;

const BPF_OBJ_GET: libc::c_int = 7;
const BPF_OBJ_GET_INFO_BY_FD: libc::c_int = 15;
const BPF_PROG_QUERY: libc::c_int = 16;
const BPF_MAP_LOOKUP_BATCH: libc::c_int = 24;

/// Where in a device's path programs are.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[repr(u32)]
pub(super) enum TcxHook {
    /// `BPF_TCX_INGRESS`
    Ingress = 46,
    /// `BPF_TCX_EGRESS`
    Egress = 47,
}

/// `union bpf_attr` of `BPF_MAP_LOOKUP_BATCH`.
#[repr(C)]
#[derive(Default)]
struct BatchAttr {
    in_batch: u64,
    out_batch: u64,
    keys: u64,
    values: u64,
    count: u32,
    map_fd: u32,
    elem_flags: u64,
    flags: u64,
}

/// `union bpf_attr` of `BPF_PROG_QUERY`.
#[repr(C)]
#[derive(Default)]
struct QueryAttr {
    target_ifindex: u32,
    attach_type: u32,
    query_flags: u32,
    attach_flags: u32,
    prog_ids: u64,
    prog_cnt: u32,
    pad: u32,
    prog_attach_flags: u64,
    link_ids: u64,
    link_attach_flags: u64,
    revision: u64,
}

/// `union bpf_attr` of `BPF_OBJ_GET`.
#[repr(C)]
#[derive(Default)]
struct ObjectAttr {
    path: u64,
    fd: u32,
    flags: u32,
}

/// `union bpf_attr` of `BPF_OBJ_GET_INFO_BY_FD`.
#[repr(C)]
#[derive(Default)]
struct InfoAttr {
    fd: u32,
    length: u32,
    info: u64,
}

/// The beginning of `struct bpf_link_info`, with the variant for TCX.
#[repr(C, align(8))]
#[derive(Default)]
struct LinkInfo {
    kind: u32,
    id: u32,
    program_id: u32,
    pad: u32,
    ifindex: u32,
    attach_type: u32,
}

/// What a pinned TCX link holds together.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct PinnedTcx {
    pub(super) program_id: u32,
    /// Zero once the device is gone.
    pub(super) ifindex: u32,
}

/// What is pinned at a path, taken for a TCX link; nothing if nothing is.
pub(super) fn pinned_link(pin: &Path) -> io::Result<Option<PinnedTcx>> {
    let path = CString::new(pin.as_os_str().as_bytes())?;
    let path = path.as_ptr().expose_provenance() as u64;
    // SAFETY: the path ends in a zero and lives until the call is over.
    let opened = unsafe { bpf(BPF_OBJ_GET, &mut ObjectAttr { path, ..ObjectAttr::default() }) };
    let fd = match opened {
        Ok(fd) => fd,
        // What is not there, or is a file that is none of the kernel's, holds no program of ours: it
        // is made anew.
        Err(Errno::ENOENT | Errno::EACCES) => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    // SAFETY: the kernel has just opened it for us.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    let mut info = LinkInfo::default();
    let mut attr = InfoAttr {
        fd: fd.as_raw_fd().cast_unsigned(),
        length: u32::try_from(size_of::<LinkInfo>()).unwrap_or_default(),
        info: (&raw mut info).expose_provenance() as u64,
    };
    // SAFETY: `info` has room for `length` bytes.
    unsafe { bpf(BPF_OBJ_GET_INFO_BY_FD, &mut attr) }?;
    Ok(Some(PinnedTcx { program_id: info.program_id, ifindex: info.ifindex }))
}

/// Reads a hash map whole. Entries that come or go meanwhile may or may not be there.
pub(super) fn entries<K: Pod + Ord, V: Pod>(
    map: &HashMap<MapData, K, V>,
) -> io::Result<BTreeMap<K, V>> {
    let map_fd = map.map().fd().as_fd().as_raw_fd().cast_unsigned();
    let mut all = BTreeMap::new();
    let mut size = BATCH;
    // SAFETY: any bit pattern is a value of a `Pod`.
    let (zero_key, zero_value): (K, V) = unsafe { (std::mem::zeroed(), std::mem::zeroed()) };
    let (mut keys, mut values) = (vec![zero_key; size], vec![zero_value; size]);
    // Where the kernel is: for a hash map, the number of a bucket.
    let (mut at, mut next) = (0_u32, 0_u32);
    let mut first = true;
    loop {
        let mut attr = BatchAttr {
            in_batch: if first { 0 } else { (&raw const at).expose_provenance() as u64 },
            out_batch: (&raw mut next).expose_provenance() as u64,
            keys: keys.as_mut_ptr().expose_provenance() as u64,
            values: values.as_mut_ptr().expose_provenance() as u64,
            count: u32::try_from(size).unwrap_or(u32::MAX),
            map_fd,
            ..BatchAttr::default()
        };
        // SAFETY: `keys` and `values` have room for `count` entries, since `K` and `V` are of the map's
        // sizes (`HashMap` has checked that), and `at` and `next` are numbers as the kernel expects.
        let result = unsafe { bpf(BPF_MAP_LOOKUP_BATCH, &mut attr) };
        let read = attr.count as usize;
        match result {
            Err(Errno::ENOSPC) => {
                size *= 2;
                keys.resize(size, zero_key);
                values.resize(size, zero_value);
                continue;
            }
            Ok(_) | Err(Errno::ENOENT) => {
                all.extend(keys[..read].iter().copied().zip(values[..read].iter().copied()));
            }
            Err(error) => return Err(error.into()),
        }
        if result.is_err() {
            return Ok(all);
        }
        (at, first) = (next, false);
    }
}

/// The numbers of the programs at a hook, in order.
pub(super) fn programs_at(ifindex: u32, hook: TcxHook) -> io::Result<Vec<u32>> {
    let mut ids = [0_u32; 64];
    let mut attr = QueryAttr {
        target_ifindex: ifindex,
        attach_type: hook as u32,
        prog_ids: ids.as_mut_ptr().expose_provenance() as u64,
        prog_cnt: 64,
        ..QueryAttr::default()
    };
    // SAFETY: `ids` has room for `prog_cnt` numbers.
    unsafe { bpf(BPF_PROG_QUERY, &mut attr) }?;
    Ok(ids.into_iter().take(attr.prog_cnt as usize).collect())
}

/// # Safety
///
/// Every pointer in `attr` must point to what the command expects there.
unsafe fn bpf<T>(command: libc::c_int, attr: &mut T) -> Result<libc::c_int, Errno> {
    // SAFETY: the kernel reads and writes `size_of::<T>()` bytes of `attr`; the caller answers for
    // the pointers in it.
    let result =
        unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attr), size_of::<T>()) };
    // A descriptor, or zero.
    Errno::result(result).map(|result| libc::c_int::try_from(result).unwrap_or_default())
}
