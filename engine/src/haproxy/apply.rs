//! Putting a configuration in the place of another: HAProxy looks at it before, and the change of files is atomic.

use std::fs::{self, File, Permissions};
use std::io::{self, Read as _, Seek as _, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use ringfeed_protocol::printable::Printable;

/// How long HAProxy may look at a configuration, and a reload may take.
const PROGRAM_TIME: Duration = Duration::from_secs(30);
/// Between two looks at whether a program has ended.
const POLL_EVERY: Duration = Duration::from_millis(10);
/// Most that is shown of what a program says, in bytes.
const SAID_BYTES_MAX: usize = 2000;
/// Largest configuration that is read, in bytes.
const FILE_BYTES_MAX: u64 = 16 << 20;
/// Of a file that was not there before.
const MODE: u32 = 0o644;

/// Why a configuration is not in use.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    /// A file, or a program that could not be started.
    #[error("{0}: {1}")]
    Io(String, #[source] io::Error),
    /// HAProxy does not accept it. The file of before is in its place.
    #[error("HAProxy does not accept the new configuration, and the old one stays: {0}")]
    Refused(String),
    /// It is in its place, but HAProxy was not told, or would not listen.
    #[error("the new configuration is in its place, but the reload failed: {0}")]
    NotReloaded(String),
}

fn at(path: &Path) -> impl FnOnce(io::Error) -> ApplyError {
    let path = path.display().to_string();
    move |e| ApplyError::Io(path, e)
}

/// How HAProxy is told to read its configuration again.
#[derive(Debug, Clone)]
pub enum Reload {
    /// Not at all.
    None,
    /// By a command for the shell.
    Command(String),
    /// By SIGUSR2 to the master process whose number is in this file.
    PidFile(PathBuf),
}

/// A configuration file, and the program that reads it.
#[derive(Debug, Clone)]
pub struct Target {
    /// The file.
    pub file: PathBuf,
    /// HAProxy itself.
    pub haproxy: PathBuf,
    /// How it is told.
    pub reload: Reload,
}

impl Target {
    /// What the file holds; `None` if it is not there.
    pub fn read(&self) -> Result<Option<String>, ApplyError> {
        let mut text = String::new();
        match File::open(&self.file) {
            Ok(file) => {
                file.take(FILE_BYTES_MAX + 1).read_to_string(&mut text).map_err(at(&self.file))?;
                if text.len() as u64 > FILE_BYTES_MAX {
                    return Err(at(&self.file)(io::ErrorKind::FileTooLarge.into()));
                }
                Ok(Some(text))
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(at(&self.file)(e)),
        }
    }

    /// Puts a configuration into the file, if HAProxy accepts it; false if it is there already. Blocks.
    pub fn put(&self, text: &str) -> Result<bool, ApplyError> {
        if self.read()?.as_deref() == Some(text) {
            return Ok(false);
        }
        // Where a link leads: the link itself stays.
        let file = fs::canonicalize(&self.file).unwrap_or_else(|_| self.file.clone());
        let directory = file.parent().filter(|directory| !directory.as_os_str().is_empty());
        let directory = directory.unwrap_or(Path::new(".")).to_owned();
        let mode = fs::metadata(&file).map_or(MODE, |found| found.permissions().mode() & 0o777);
        let mut builder = tempfile::Builder::new();
        let made = builder.prefix(".ringfeed-haproxy-").suffix(".cfg").tempfile_in(&directory);
        let mut made = made.map_err(at(&directory))?;
        let written = made.write_all(text.as_bytes()).and_then(|()| {
            made.as_file().set_permissions(Permissions::from_mode(mode))?;
            made.as_file().sync_all()
        });
        written.map_err(at(made.path()))?;
        let mut check = Command::new(&self.haproxy);
        check.args(["-c", "-f"]).arg(made.path());
        let (status, said) = run(check).map_err(at(&self.haproxy))?;
        if !status.is_some_and(|status| status.success()) {
            return Err(ApplyError::Refused(said));
        }
        made.persist(&file).map_err(|e| at(&file)(e.error))?;
        let synced = File::open(&directory).and_then(|directory| directory.sync_all());
        synced.map_err(at(&directory))?;
        Ok(true)
    }

    /// Tells HAProxy. Blocks.
    pub fn reload(&self) -> Result<(), ApplyError> {
        let mut command = Command::new("/bin/sh");
        match &self.reload {
            Reload::None => return Ok(()),
            Reload::Command(line) => command.arg("-c").arg(line),
            Reload::PidFile(file) => {
                let text = fs::read_to_string(file).map_err(at(file))?;
                let pid = text.lines().next().and_then(|line| line.trim().parse::<u32>().ok());
                let not_one =
                    || ApplyError::NotReloaded(format!("{}: no pid in it", file.display()));
                // 0 would be every process of this group, and 1 is nobody's HAProxy but a container's.
                let pid = pid.filter(|&pid| pid > 0).ok_or_else(not_one)?;
                command.arg("-c").arg(format!("kill -USR2 {pid}"))
            }
        };
        let (status, said) = run(command).map_err(at(Path::new("/bin/sh")))?;
        match status {
            Some(status) if status.success() => Ok(()),
            Some(status) => Err(ApplyError::NotReloaded(format!("{status}: {said}"))),
            None => Err(ApplyError::NotReloaded(format!("it did not end in time: {said}"))),
        }
    }
}

/// Runs a program to its end, or to the end of its time: then there is no status. Gives what it said.
fn run(mut command: Command) -> io::Result<(Option<ExitStatus>, String)> {
    // A file: a pipe that nobody empties would hold it up, and its children could keep it open.
    let mut output = tempfile::tempfile()?;
    command.stdin(Stdio::null()).stdout(output.try_clone()?).stderr(output.try_clone()?);
    let mut child = command.spawn()?;
    let deadline = Instant::now() + PROGRAM_TIME;
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break Some(status);
        }
        if Instant::now() >= deadline {
            child.kill()?;
            child.wait()?;
            break None;
        }
        std::thread::sleep(POLL_EVERY);
    };
    output.rewind()?;
    let mut said = Vec::new();
    output.take(SAID_BYTES_MAX as u64).read_to_end(&mut said)?;
    let said = String::from_utf8_lossy(&said);
    let lines: Vec<&str> = said.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    Ok((status, Printable::new(lines.join("; "), SAID_BYTES_MAX).to_string()))
}
