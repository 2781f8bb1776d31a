//! Running other programs: every failure names the command, every wait ends.

use std::{
    ffi::OsStr,
    io::Read,
    path::PathBuf,
    process::{Child, Command, Output, Stdio},
    thread,
    time::{Duration, Instant},
};

/// Where distributions keep the tools of root, which a user's PATH often lacks.
const ADMIN_FOLDERS: [&str; 3] = ["/usr/local/sbin", "/usr/sbin", "/sbin"];

/// How long a command may take that only asks or tells the kernel something.
const LIMIT: Duration = Duration::from_secs(20);

/// Finds a program in PATH and in the folders of root's tools.
pub fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(ADMIN_FOLDERS.iter().map(PathBuf::from))
        .map(|folder| folder.join(program))
        .find(|file| file.is_file())
}

/// A command for `program`, with stdin closed.
pub fn command(program: impl AsRef<OsStr>) -> Command {
    let program = program.as_ref();
    let found = program.to_str().and_then(find);
    let mut command = Command::new(found.unwrap_or_else(|| program.into()));
    command.stdin(Stdio::null());
    command
}

/// The command line as a person would type it.
pub fn shown(command: &Command) -> String {
    std::iter::once(command.get_program())
        .chain(command.get_args())
        .map(OsStr::to_string_lossy)
        .collect::<Vec<_>>()
        .join(" ")
}

/// Runs a command that must succeed, and returns what it printed.
pub fn capture(command: &mut Command) -> String {
    let output = capture_any(command, LIMIT);
    assert!(
        output.status.success(),
        "{} failed ({}): {}",
        shown(command),
        output.status,
        String::from_utf8_lossy(&output.stderr).trim_end()
    );
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Runs a command to its end, good or bad. Panics, after killing it, if it takes longer than `limit`.
pub fn capture_any(command: &mut Command, limit: Duration) -> Output {
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command
        .spawn()
        .unwrap_or_else(|error| panic!("failed to start {}: {error}", shown(command)));
    let stdout = drain(child.stdout.take().expect("it was piped above"));
    let stderr = drain(child.stderr.take().expect("it was piped above"));
    let Some(status) = wait_for_exit(&mut child, limit) else {
        child.kill().ok();
        child.wait().ok();
        let (stdout, stderr) = (stdout.join(), stderr.join());
        panic!(
            "{} took longer than {} s; it printed {:?} {:?}",
            shown(command),
            limit.as_secs(),
            String::from_utf8_lossy(&stdout.unwrap_or_default()),
            String::from_utf8_lossy(&stderr.unwrap_or_default()),
        )
    };
    Output {
        status,
        stdout: stdout.join().unwrap_or_default(),
        stderr: stderr.join().unwrap_or_default(),
    }
}

/// Waits for a child; `None` if it still runs after `limit`.
pub fn wait_for_exit(child: &mut Child, limit: Duration) -> Option<std::process::ExitStatus> {
    let deadline = Instant::now() + limit;
    loop {
        match child.try_wait().expect("a child of ours can be waited for") {
            Some(status) => return Some(status),
            None if Instant::now() >= deadline => return None,
            None => thread::sleep(Duration::from_millis(2)),
        }
    }
}

fn drain(mut from: impl Read + Send + 'static) -> thread::JoinHandle<Vec<u8>> {
    thread::spawn(move || {
        let mut bytes = Vec::new();
        // What was read until an error is what there is.
        from.read_to_end(&mut bytes).ok();
        bytes
    })
}
