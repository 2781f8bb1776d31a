//! Everything that passes a device, for as long as a test wants to look.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use crate::{
    netns::Namespace,
    packet::{Encapsulated, is_marked},
    packet_socket::{Frame, PacketSocket},
    wait,
};

/// A running capture; dropping it stops it.
#[derive(Debug)]
pub struct Capture {
    frames: Arc<Mutex<Vec<Frame>>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Capture {
    /// Starts to look at a device. Frames that pass after this has returned are seen.
    pub fn start(namespace: &Namespace, device: &str) -> Self {
        let socket = PacketSocket::open(namespace, device);
        let frames = Arc::new(Mutex::new(Vec::new()));
        let stop = Arc::new(AtomicBool::new(false));
        let (into, stopped) = (Arc::clone(&frames), Arc::clone(&stop));
        let thread = thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                if let Some(frame) = socket.receive() {
                    into.lock().unwrap_or_else(PoisonError::into_inner).push(frame);
                }
            }
        });
        Self { frames, stop, thread: Some(thread) }
    }

    /// What was seen so far.
    pub fn frames(&self) -> Vec<Frame> {
        self.frames.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Forgets what was seen so far.
    pub fn clear(&self) {
        self.frames.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    /// How many frames satisfy `wanted`.
    pub fn count(&self, wanted: impl Fn(&Frame) -> bool) -> usize {
        let frames = self.frames.lock().unwrap_or_else(PoisonError::into_inner);
        frames.iter().filter(|frame| wanted(frame)).count()
    }

    /// How many frames with that mark the device received.
    pub fn received(&self, text: &str) -> usize {
        self.count(|frame| !frame.outgoing && is_marked(&frame.bytes, text))
    }

    /// How many frames with that mark passed inside VXLAN.
    pub fn carried(&self, text: &str) -> usize {
        self.count(|frame| {
            Encapsulated::parse(&frame.bytes).is_some_and(|outer| is_marked(outer.inner, text))
        })
    }

    /// Waits until a frame satisfies `wanted`.
    pub fn wait_for(&self, what: &str, limit: Duration, wanted: impl Fn(&Frame) -> bool) {
        wait::until(what, limit, || self.count(&wanted) > 0);
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        // A panic of the thread has been printed, and shows as frames that are missing.
        self.thread.take().and_then(|thread| thread.join().ok());
    }
}
