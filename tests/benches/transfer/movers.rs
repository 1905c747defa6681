//! Everything that moves a file here, behind one interface.

use std::fs::{self, Permissions};
use std::io::Write as _;
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use hyperfabric_tests::wait::until;
use hyperfabric_tests::{Exit, Folder, Mesh, Peer, Running};

use crate::quinn_mover;

/// How long one round may take.
const DEADLINE: Duration = Duration::from_secs(900);
/// How long a server may take to listen.
const START: Duration = Duration::from_secs(10);

/// A way to move a file.
pub(crate) enum Mover {
    /// Two daemons of ours and `send`.
    Ours(Box<Mesh>),
    /// A plain quinn program.
    Quinn,
    /// `scp` to a throw-away server.
    Scp(Sshd),
    /// `cp`: no network, no second process, no encryption.
    Cp,
}

impl Mover {
    pub(crate) fn ours(mtu: u16) -> Result<Self> {
        let yaml = format!("transport:\n  mtu_max: {mtu}\n");
        Ok(Self::Ours(Box::new(Mesh::start_with(
            "bench",
            &["alpha", "beta"],
            &yaml,
        )?)))
    }

    pub(crate) const fn name(&self) -> &'static str {
        match self {
            Self::Ours(_) => "hyperfabric send",
            Self::Quinn => "plain quinn",
            Self::Scp(_) => "scp",
            Self::Cp => "cp",
        }
    }

    /// The processes that run all the time, and whose cost counts.
    pub(crate) fn servers(&self) -> Result<Vec<u32>> {
        match self {
            Self::Ours(mesh) => mesh.peers.iter().map(Peer::pid).collect(),
            Self::Scp(sshd) => Ok(vec![sshd.child.id()]),
            Self::Quinn | Self::Cp => Ok(Vec::new()),
        }
    }

    /// Moves `from` into a new file and returns that file.
    pub(crate) fn run(&self, from: &Path, to: &Path, mtu: u16) -> Result<()> {
        match self {
            Self::Ours(mesh) => {
                let from = from.to_str().context("a path that is not UTF-8")?;
                let sent = mesh.peers[0].start(&["send", from, "--to", "beta", "--json"])?;
                sent.wait(DEADLINE)?.expect(Exit::Done)?;
                Ok(())
            }
            Self::Quinn => quinn_mover::run(from, to, mtu),
            Self::Scp(sshd) => sshd.copy(from, to),
            Self::Cp => {
                Running::start(Command::new("cp").args([from, to]))?
                    .wait(DEADLINE)?
                    .expect(Exit::Done)?;
                Ok(())
            }
        }
    }

    /// Returns the file that [`Mover::run`] made.
    pub(crate) fn arrived(&self, to: &Path) -> Result<PathBuf> {
        match self {
            Self::Ours(mesh) => mesh.peers[1].received()?.pop().context("nothing arrived"),
            Self::Quinn | Self::Scp(_) | Self::Cp => Ok(to.to_path_buf()),
        }
    }
}

/// A throw-away SSH server on a loopback port, with keys of its own.
pub(crate) struct Sshd {
    child: Child,
    folder: Folder,
    port: u16,
}

impl Sshd {
    /// Starts the server, or says why it cannot be.
    pub(crate) fn start() -> Result<Self> {
        // It wants to be started by its absolute path, and lies outside of most users' PATH.
        let path = std::env::var_os("PATH").unwrap_or_default();
        let folders = std::env::split_paths(&path).chain(["/usr/sbin".into(), "/usr/local/sbin".into()]);
        let program = folders
            .map(|folder| folder.join("sshd"))
            .find(|path| path.is_file());
        let program = program.context("there is no sshd on this machine")?;
        let folder = Folder::new()?;
        for key in ["host", "user"] {
            let made = Command::new("ssh-keygen")
                .args(["-q", "-t", "ed25519", "-N", "", "-f"])
                .arg(folder.path().join(key))
                .status()
                .context("no ssh-keygen")?;
            ensure!(made.success(), "ssh-keygen: {made}");
        }
        fs::copy(folder.path().join("user.pub"), folder.path().join("authorized"))?;
        fs::set_permissions(folder.path().join("authorized"), Permissions::from_mode(0o600))?;
        // Free at this moment; another process could take it, and sshd would say so.
        let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port();
        let mut config = fs::File::create(folder.path().join("config"))?;
        writeln!(
            config,
            "Port {port}\nListenAddress 127.0.0.1\nUsePAM no\nStrictModes no\nPidFile none"
        )?;
        writeln!(
            config,
            "HostKey {0}/host\nAuthorizedKeysFile {0}/authorized",
            folder.path().display()
        )?;
        writeln!(
            config,
            "PermitRootLogin prohibit-password\nSubsystem sftp internal-sftp"
        )?;
        if rustix::process::getuid().is_root() {
            // Where the unprivileged half of the server is confined; a package makes it at boot.
            fs::create_dir_all("/run/sshd")?;
        }
        let mut child = Command::new(program)
            .args(["-D", "-e", "-f"])
            .arg(folder.path().join("config"))
            .stdin(Stdio::null())
            .stderr(fs::File::create(folder.path().join("log"))?)
            .spawn()?;
        let listening = until("sshd to listen", START, || {
            ensure!(
                child.try_wait()?.is_none(),
                "sshd ended: {}",
                fs::read_to_string(folder.path().join("log"))?
            );
            Ok(TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_ok())
        });
        let sshd = Self { child, folder, port };
        listening.map(|()| sshd)
    }

    fn copy(&self, from: &Path, to: &Path) -> Result<()> {
        let mut command = Command::new("scp");
        command.args([
            "-q",
            "-B",
            "-F",
            "none",
            "-o",
            "StrictHostKeyChecking=no",
            "-o",
            "LogLevel=ERROR",
        ]);
        command.arg("-o").arg("UserKnownHostsFile=/dev/null");
        // AES-GCM, which both the product and the plain mover use.
        command.args(["-c", "aes128-gcm@openssh.com", "-P", &self.port.to_string()]);
        command.arg("-i").arg(self.folder.path().join("user")).arg(from);
        command.arg(format!("127.0.0.1:{}", to.display()));
        Running::start(&mut command)?.wait(DEADLINE)?.expect(Exit::Done)?;
        Ok(())
    }
}

impl Drop for Sshd {
    fn drop(&mut self) {
        // It may have ended since: both results say nothing new then.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}
