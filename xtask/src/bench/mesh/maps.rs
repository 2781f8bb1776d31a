//! Pinned BPF maps, read by the system call alone.
//!
//! A hundred daemons are watched many times a second: asking each of them would disturb what is
//! measured, and a `bpftool` for each would do so more.
#![expect(unsafe_code, reason = "xtask compiles first and quickly: no crate for three calls")]

use std::{
    collections::BTreeSet,
    ffi::CString,
    fs, io,
    marker::PhantomData,
    mem::MaybeUninit,
    net::{IpAddr, Ipv4Addr},
    os::{
        fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
        unix::ffi::OsStrExt as _,
    },
    path::Path,
};

use anyhow::{Context as _, Result, ensure};
use marengo_common::{FloodChunk, FloodPosition, MapName, PeerIndex, VtepEntry, VtepKey};
use nix::{errno::Errno, libc};

/// What of a node's maps says whom it forwards to.
#[derive(Debug)]
pub(super) struct PeerMaps {
    vteps: Map<VtepKey, VtepEntry>,
    flood: Map<FloodPosition, FloodChunk>,
}

impl PeerMaps {
    /// Opens a node's maps; `None` while it has not made them.
    pub(super) fn open(pins: &Path) -> Result<Option<Self>> {
        let (vteps, flood) = (pins.join(MapName::VTEPS.pin), pins.join(MapName::FLOOD.pin));
        if !vteps.exists() || !flood.exists() {
            return Ok(None);
        }
        Ok(Some(Self { vteps: Map::open(&vteps)?, flood: Map::open(&flood)? }))
    }

    /// Whether exactly these addresses are peers: known as senders, and all on the flood list.
    pub(super) fn hold(&self, peers: &BTreeSet<Ipv4Addr>) -> Result<bool> {
        let keys = self.vteps.keys()?;
        let known: BTreeSet<&VtepKey> = keys.iter().collect();
        let wanted: Vec<VtepKey> =
            peers.iter().map(|address| VtepKey::new(IpAddr::V4(*address))).collect();
        Ok(known == wanted.iter().collect() && self.flooded()?.len() == peers.len())
    }

    /// Whether an address is no peer any more.
    pub(super) fn lack(&self, peer: Ipv4Addr, left: usize) -> Result<bool> {
        let gone = self.vteps.get(&VtepKey::new(IpAddr::V4(peer)))?.is_none();
        Ok(gone && self.flooded()?.len() == left)
    }

    fn flooded(&self) -> Result<BTreeSet<PeerIndex>> {
        let mut indexes = BTreeSet::new();
        for position in self.flood.keys()? {
            let chunk = self.flood.get(&position)?;
            indexes.extend(chunk.iter().flat_map(|chunk| chunk.peers).filter(|index| *index != 0));
        }
        Ok(indexes)
    }
}

/// A map whose keys and values have these layouts.
#[derive(Debug)]
struct Map<K, V> {
    fd: OwnedFd,
    types: PhantomData<(K, V)>,
}

impl<K: Copy, V: Copy> Map<K, V> {
    fn open(pin: &Path) -> Result<Self> {
        let fd = object(pin).with_context(|| format!("failed to open {}", pin.display()))?;
        // The kernel writes as many bytes as the map says, whatever room there is.
        let info = fs::read_to_string(format!("/proc/self/fdinfo/{}", fd.as_raw_fd()))
            .context("failed to read what a descriptor is")?;
        let is = |name: &str, size: usize| {
            let number = info.lines().find_map(|line| line.strip_prefix(name));
            number.is_some_and(|number| number.trim() == size.to_string())
        };
        ensure!(
            is("key_size:", size_of::<K>()) && is("value_size:", size_of::<V>()),
            "{} has another layout than this build's",
            pin.display()
        );
        Ok(Self { fd, types: PhantomData })
    }

    fn keys(&self) -> Result<Vec<K>> {
        let mut keys = Vec::new();
        let mut next = self.next_key(None)?;
        while let Some(key) = next {
            keys.push(key);
            next = self.next_key(Some(&key))?;
        }
        Ok(keys)
    }

    fn next_key(&self, key: Option<&K>) -> Result<Option<K>> {
        const BPF_MAP_GET_NEXT_KEY: libc::c_int = 4;
        let mut next = MaybeUninit::<K>::uninit();
        let key = key.map_or(0, |key| address(std::ptr::from_ref(key)));
        let element = self.element(key, address(next.as_mut_ptr()));
        let found = bpf(BPF_MAP_GET_NEXT_KEY, &element);
        // SAFETY: the kernel has filled it; any bytes are a key.
        entry(found).map(|found| found.map(|()| unsafe { next.assume_init() }))
    }

    fn get(&self, key: &K) -> Result<Option<V>> {
        const BPF_MAP_LOOKUP_ELEM: libc::c_int = 1;
        let mut value = MaybeUninit::<V>::uninit();
        let element = self.element(address(std::ptr::from_ref(key)), address(value.as_mut_ptr()));
        let found = bpf(BPF_MAP_LOOKUP_ELEM, &element);
        // SAFETY: the kernel has filled it; any bytes are a value.
        entry(found).map(|found| found.map(|()| unsafe { value.assume_init() }))
    }

    fn element(&self, key: u64, value: u64) -> Element {
        Element { fd: self.fd.as_raw_fd().cast_unsigned(), pad: 0, key, value, flags: 0 }
    }
}

/// The part of `union bpf_attr` that operations on elements read.
#[repr(C)]
struct Element {
    fd: u32,
    pad: u32,
    key: u64,
    value: u64,
    flags: u64,
}

/// The part of `union bpf_attr` that `BPF_OBJ_GET` reads.
#[repr(C)]
struct Object {
    path: u64,
    fd: u32,
    flags: u32,
}

fn object(pin: &Path) -> Result<OwnedFd> {
    const BPF_OBJ_GET: libc::c_int = 7;
    let path = CString::new(pin.as_os_str().as_bytes())?;
    let fd = bpf(BPF_OBJ_GET, &Object { path: address(path.as_ptr()), fd: 0, flags: 0 })?;
    // SAFETY: the kernel has just opened it for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn bpf<A>(command: libc::c_int, attributes: &A) -> io::Result<i32> {
    // SAFETY: the callers pass the part of the attributes that the command reads, and room for what
    // it writes.
    let result = unsafe {
        libc::syscall(libc::SYS_bpf, command, std::ptr::from_ref(attributes), size_of::<A>())
    };
    let result = Errno::result(result)?;
    i32::try_from(result).map_err(io::Error::other)
}

/// An absent element is an answer.
fn entry(result: io::Result<i32>) -> Result<Option<()>> {
    match result {
        Ok(_) => Ok(Some(())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).context("failed to read a map"),
    }
}

fn address<T>(pointer: *const T) -> u64 {
    pointer.expose_provenance() as u64
}
