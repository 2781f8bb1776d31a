//! Much data over one TCP connection.

use std::{
    io::{Read as _, Write as _},
    net::{IpAddr, TcpListener, TcpStream},
    time::{Duration, Instant},
};

use crate::{netns::Namespace, wait};

/// Sends some megabytes and checks each of them. Returns how long that took.
pub fn stream(from: &Namespace, to: &Namespace, address: IpAddr) -> Duration {
    const LENGTH: usize = 16 << 20;
    let listener = to.inside(|| TcpListener::bind((address, 0)).expect("the address is its own"));
    let target = listener.local_addr().expect("it is bound");
    let data: Vec<u8> = (0_u32..).flat_map(u32::to_be_bytes).take(LENGTH).collect();
    let start = Instant::now();
    let received = std::thread::scope(|scope| {
        scope.spawn(|| {
            let limit = Duration::from_secs(10);
            let stream = from.inside(|| TcpStream::connect_timeout(&target, limit));
            let mut stream = stream.expect("there is a way");
            stream.set_write_timeout(Some(limit)).expect("it is not zero");
            stream.write_all(&data).expect("the other end reads");
        });
        let mut stream = accept(&listener);
        stream.set_read_timeout(Some(Duration::from_secs(10))).expect("it is not zero");
        let mut received = Vec::with_capacity(LENGTH);
        stream.read_to_end(&mut received).expect("the other end sends");
        received
    });
    assert!(received == data, "{} of {LENGTH} bytes, or others", received.len());
    start.elapsed()
}

/// Takes the connection, if there is one in time.
fn accept(listener: &TcpListener) -> TcpStream {
    listener.set_nonblocking(true).expect("a socket can be polled");
    let stream = wait::until_some("a connection", Duration::from_secs(10), || {
        listener.accept().ok().map(|(stream, _)| stream)
    });
    stream.set_nonblocking(false).expect("a socket can block");
    stream
}
