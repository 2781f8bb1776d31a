//! Running other programs: every failure names the command, every wait ends.

use std::{
    ffi::OsStr,
    os::unix::process::{CommandExt as _, ExitStatusExt as _},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Output, Stdio},
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, anyhow, bail};
use nix::{
    sys::signal::{Signal, killpg},
    unistd::Pid,
};

use crate::stop;

/// How long a command may take whose output we read: these only ask the kernel or a daemon.
const CAPTURE_LIMIT: Duration = Duration::from_secs(15);

/// Where distributions keep the tools of root, which a user's PATH often lacks.
const ADMIN_FOLDERS: [&str; 3] = ["/usr/local/sbin", "/usr/sbin", "/sbin"];

/// Finds a program in PATH and in the folders of root's tools.
pub(crate) fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(ADMIN_FOLDERS.iter().map(PathBuf::from))
        .map(|folder| folder.join(program))
        .find(|file| is_executable(file))
}

fn is_executable(file: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt as _;
    file.metadata().is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
}

/// A command for `program`, wherever [`find`] sees it, with stdin closed.
pub(crate) fn command(program: &str) -> Command {
    let mut command = Command::new(find(program).unwrap_or_else(|| program.into()));
    command.stdin(Stdio::null());
    command
}

/// The command line as a person would type it.
pub(crate) fn shown(command: &Command) -> String {
    let program = Path::new(command.get_program());
    std::iter::once(program.file_name().unwrap_or(program.as_os_str()))
        .chain(command.get_args())
        .map(OsStr::to_string_lossy)
        .collect::<Vec<_>>()
        .join(" ")
}

/// Runs a command that prints for itself; a signal ends it. Fails unless it succeeds.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    let status = run_limited(command, None)?;
    if status.success() { Ok(()) } else { Err(failed(command, status)) }
}

/// As [`run`], and gives what the command wrote to stdout; its stderr is the terminal's.
pub(crate) fn run_reading(command: &mut Command) -> Result<String> {
    let (text, status) = run_reading_any(command)?;
    if status.success() { Ok(text) } else { Err(failed(command, status)) }
}

/// As [`run_reading`], for a command whose failure is an answer: how it ended, too.
pub(crate) fn run_reading_any(command: &mut Command) -> Result<(String, ExitStatus)> {
    let (reader, writer) = std::io::pipe().context("failed to make a pipe")?;
    let text = thread::spawn(move || std::io::read_to_string(reader));
    let status = run_limited(command.stdout(writer), None);
    // The reader ends when the last writer is gone, and the command holds one.
    command.stdout(Stdio::null());
    let text = text.join().map_err(|_panic| anyhow!("the reader of a pipe panicked"))?;
    let status = status?;
    let text = text.with_context(|| format!("failed to read what {} printed", shown(command)))?;
    Ok((text, status))
}

/// As [`run`], in a process group of its own that is ended as a whole after `limit` or on a signal.
pub(crate) fn run_group(command: &mut Command, limit: Duration) -> Result<()> {
    command.process_group(0);
    let status = run_limited(command, Some(limit))?;
    if status.success() { Ok(()) } else { Err(failed(command, status)) }
}

fn run_limited(command: &mut Command, limit: Option<Duration>) -> Result<ExitStatus> {
    stop::check()?;
    let mut child =
        command.spawn().with_context(|| format!("failed to start {}", shown(command)))?;
    let deadline = limit.map(|limit| Instant::now() + limit);
    loop {
        if let Some(status) = child.try_wait().context("failed to wait for a child")? {
            stop::check()?;
            return Ok(status);
        }
        let late = deadline.is_some_and(|deadline| Instant::now() >= deadline);
        if late || stop::requested() {
            // Without a group of its own the terminal's signal has reached the child already.
            end(&mut child, limit.is_some());
            stop::check()?;
            bail!(
                "{} took more than {} s and was ended",
                shown(command),
                limit.unwrap_or_default().as_secs()
            );
        }
        thread::sleep(Duration::from_millis(20));
    }
}

/// Asks a child (or its group) to end, and makes it after five seconds.
fn end(child: &mut Child, group: bool) {
    let pid = pid_of(child);
    for (signal, patience) in [(Signal::SIGTERM, 5), (Signal::SIGKILL, 5)] {
        let sent = if group { killpg(pid, signal) } else { nix::sys::signal::kill(pid, signal) };
        let deadline = Instant::now() + Duration::from_secs(patience);
        while sent.is_ok() && Instant::now() < deadline {
            if matches!(child.try_wait(), Ok(Some(_))) {
                if group {
                    // Whoever of the group outlives its leader; mostly nobody.
                    killpg(pid, Signal::SIGKILL).ok();
                }
                return;
            }
            thread::sleep(Duration::from_millis(20));
        }
    }
}

/// The pid of a child, for signals.
pub(crate) fn pid_of(child: &Child) -> Pid {
    Pid::from_raw(i32::try_from(child.id()).expect("a pid fits in pid_t"))
}

/// Runs a short command to its end and gives what it printed; fails unless it succeeds.
///
/// A signal does not end it: clean-up uses this too.
pub(crate) fn capture(command: &mut Command) -> Result<String> {
    let output = capture_any(command)?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        let error = failed(command, output.status);
        return Err(match said.trim() {
            "" => error,
            said => error.context(said.to_owned()),
        });
    }
    String::from_utf8(output.stdout)
        .with_context(|| format!("{} printed something that is not UTF-8", shown(command)))
}

/// As [`capture`], for a command whose failure is an answer.
pub(crate) fn capture_any(command: &mut Command) -> Result<Output> {
    // Its own group keeps the terminal's Ctrl-C from ending it half-way.
    command.process_group(0).stdout(Stdio::piped()).stderr(Stdio::piped());
    loop {
        let output = capture_once(command)?;
        // Ctrl-C met the child between its fork and its leaving our group: it has done nothing yet.
        if output.status.signal() != Some(Signal::SIGINT as i32) {
            return Ok(output);
        }
    }
}

fn capture_once(command: &mut Command) -> Result<Output> {
    let child = command.spawn().with_context(|| format!("failed to start {}", shown(command)))?;
    let pid = pid_of(&child);
    let (done, finished) = mpsc::channel();
    thread::spawn(move || done.send(child.wait_with_output()));
    match finished.recv_timeout(CAPTURE_LIMIT) {
        Ok(output) => output.with_context(|| format!("failed to wait for {}", shown(command))),
        Err(_timeout) => {
            killpg(pid, Signal::SIGKILL).with_context(|| format!("failed to end {pid}"))?;
            bail!("{} took more than {} s", shown(command), CAPTURE_LIMIT.as_secs())
        }
    }
}

/// The error of a command that did not succeed.
pub(crate) fn failed(command: &Command, status: ExitStatus) -> anyhow::Error {
    anyhow!("{} failed ({status})", shown(command))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_that_takes_too_long_is_ended_with_its_group() {
        let mut shell = command("sh");
        // The inner shell outlives the outer one, and its argument tells it from any other.
        let mark = format!("xtask-test-{}", std::process::id());
        shell.args(["-c", &format!("sh -c \"trap '' TERM; sleep 60; :\" {mark} & sleep 60")]);

        let error = run_group(&mut shell, Duration::from_millis(300)).unwrap_err();

        assert!(error.to_string().contains("was ended"), "{error}");
        thread::sleep(Duration::from_millis(200));
        let still = std::fs::read_dir("/proc").unwrap().flatten().filter(|process| {
            std::fs::read(process.path().join("cmdline"))
                .is_ok_and(|line| String::from_utf8_lossy(&line).ends_with(&format!("{mark}\0")))
        });
        assert_eq!(still.count(), 0);
    }

    #[test]
    fn a_failure_names_the_command_and_what_it_said() {
        let error = capture(command("sh").args(["-c", "echo oops >&2; exit 3"])).unwrap_err();

        let text = format!("{error:#}");
        assert!(text.contains("oops") && text.contains("exit status: 3"), "{text}");
    }
}
