//! A blocking client of the local API, as the command line uses it.
//!
//! It finds a daemon through its data folder: HTTP for what can be said in JSON, the socket for files to send. The socket
//! is asked first, because only the daemon of this folder can answer there, whereas the port of a daemon that was killed
//! may belong to a stranger by now, who must not be shown the token.

mod events;

use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use hyperfabric_protocol::types::NodeSignature;
use hyperfabric_protocol::{NodeId, TransferId};
use serde::Serialize;
use serde::de::DeserializeOwned;

pub use events::TransferStream;

use crate::api::frame::{self, LENGTH_BYTES, SocketReply, SocketRequest};
use crate::api::model::{
    Accepted, Admission, AdmitRequest, Done, HTTP_WAIT_MS_MAX, Invitation, InviteRequest, Member, NodeRecord,
    PeerRecord, PingReport, PingRequest, Registered, RevokeRequest, Revoked, SendOrder, Status, Transfer,
};
use crate::api::socket::SocketPath;
use crate::api::{ApiError, ErrorBody, ErrorCode, Token, TokenError};
use crate::paths::{self, DataDir, PathError};

/// The largest answer, in bytes.
const ANSWER_BYTES_MAX: u64 = 64 << 20;
/// How long the daemon may take to take a connection.
const CONNECT_MAX: Duration = Duration::from_secs(5);
/// How long it may take to answer, beyond what was asked of it.
const ANSWER_MAX: Duration = Duration::from_secs(30);

/// Why the daemon gave no answer, or a bad one.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The data folder was never initialised.
    #[error("{} is not initialised", path.display())]
    NotInitialised {
        /// The folder.
        path: std::path::PathBuf,
    },
    /// No daemon runs with the data folder.
    #[error("no daemon runs with {}", path.display())]
    NotRunning {
        /// The folder.
        path: std::path::PathBuf,
    },
    /// A file of the data folder cannot be read.
    #[error(transparent)]
    File(#[from] PathError),
    /// The token cannot be read.
    #[error(transparent)]
    Token(#[from] TokenError),
    /// The connection broke.
    #[error("the connection to the daemon broke")]
    Lost(#[source] io::Error),
    /// The daemon took too long.
    #[error("the daemon did not answer in time")]
    Late,
    /// The answer cannot be understood.
    #[error("the daemon's answer cannot be understood; is it of another version?")]
    Garbled(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The daemon says no.
    #[error(transparent)]
    Refused(ApiError),
}

impl ClientError {
    /// Tells whether a daemon that is being restarted explains it.
    #[must_use]
    pub fn is_restart(&self) -> bool {
        match self {
            Self::NotRunning { .. } | Self::Lost(_) => true,
            Self::Refused(error) => error.code == ErrorCode::Unavailable,
            Self::NotInitialised { .. } | Self::File(_) | Self::Token(_) | Self::Late | Self::Garbled(_) => {
                false
            }
        }
    }
}

impl From<ClientError> for ApiError {
    fn from(error: ClientError) -> Self {
        match error {
            ClientError::Refused(error) => error,
            ClientError::NotInitialised { .. } => Self::of(ErrorCode::Unavailable, &error)
                .hint("run `hyperfabric init` first, then `hyperfabric up`"),
            ClientError::NotRunning { .. } => {
                Self::of(ErrorCode::Unavailable, &error).hint("start it with `hyperfabric up`")
            }
            ClientError::Late => Self::of(ErrorCode::TimedOut, &error),
            ClientError::File(_) | ClientError::Token(_) | ClientError::Lost(_) | ClientError::Garbled(_) => {
                Self::of(ErrorCode::Failed, &error)
            }
        }
    }
}

/// A connection to the daemon of a data folder.
pub struct Client {
    agent: ureq::Agent,
    data_dir: DataDir,
    base: String,
    token: Token,
}

impl Client {
    /// Finds the daemon of a data folder.
    ///
    /// # Errors
    /// [`ClientError::NotRunning`] and its kin.
    pub fn connect(data_dir: &DataDir) -> Result<Self, ClientError> {
        let path = || data_dir.path().to_path_buf();
        let token = Token::read(data_dir)?.ok_or_else(|| ClientError::NotInitialised { path: path() })?;
        drop(knock(data_dir)?);
        let address = paths::read_bounded(&data_dir.api_addr())?
            .ok_or_else(|| ClientError::NotRunning { path: path() })?;
        let address = String::from_utf8_lossy(&address).trim().to_owned();
        // No proxy: the environment's is for the outside world.
        let config = ureq::Agent::config_builder()
            .http_status_as_error(false)
            .proxy(None)
            .max_redirects(0)
            .user_agent(concat!("hyperfabric/", env!("CARGO_PKG_VERSION")))
            .timeout_connect(Some(CONNECT_MAX))
            .build();
        Ok(Self {
            agent: config.into(),
            data_dir: data_dir.clone(),
            base: format!("http://{address}"),
            token,
        })
    }

    /// Returns where the daemon serves HTTP, such as `http://127.0.0.1:7070`.
    #[must_use]
    pub fn base(&self) -> &str {
        &self.base
    }

    /// Returns how the daemon is.
    ///
    /// # Errors
    /// [`ClientError`], like every other request.
    pub fn status(&self) -> Result<Status, ClientError> {
        self.get("/v1/fabric/status")
    }

    /// Returns every known node.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn nodes(&self) -> Result<Vec<NodeRecord>, ClientError> {
        self.get("/v1/fabric/nodes")
    }

    /// Returns one node.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn node(&self, id: &NodeId) -> Result<NodeRecord, ClientError> {
        // Of the characters that a node id may have, only the slash means something in a path.
        self.get(&format!("/v1/fabric/nodes/{}", id.as_str().replace('/', "%2F")))
    }

    /// Makes the daemon host a node.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn register(&self, node: &NodeSignature) -> Result<Registered, ClientError> {
        self.post("/v1/fabric/nodes", node)
    }

    /// Returns every known or connected peer.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn peers(&self) -> Result<Vec<PeerRecord>, ClientError> {
        self.get("/v1/fabric/peers")
    }

    /// Measures the way to a node.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn ping(&self, ping: &PingRequest) -> Result<PingReport, ClientError> {
        self.post("/v1/fabric/ping", ping)
    }

    /// Returns the transfers of both directions.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn transfers(&self) -> Result<Vec<Transfer>, ClientError> {
        self.get("/v1/fabric/transfers")
    }

    /// Returns one transfer.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn transfer(&self, id: TransferId) -> Result<Transfer, ClientError> {
        self.get(&format!("/v1/fabric/transfers/{id}"))
    }

    /// Ends a transfer.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn cancel(&self, id: TransferId) -> Result<Transfer, ClientError> {
        self.post(&format!("/v1/fabric/transfers/{id}/cancel"), &())
    }

    /// Begins a failed or cancelled transfer again where it stopped.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn resume(&self, id: TransferId) -> Result<Transfer, ClientError> {
        self.post(&format!("/v1/fabric/transfers/{id}/resume"), &())
    }

    /// Makes a certificate for a peer whose key is known.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn admit(&self, admit: &AdmitRequest) -> Result<Admission, ClientError> {
        self.post("/v1/fabric/admit", admit)
    }

    /// Makes a ticket.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn invite(&self, invite: &InviteRequest) -> Result<Invitation, ClientError> {
        self.post("/v1/fabric/invite", invite)
    }

    /// Returns the members of the mesh.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn members(&self) -> Result<Vec<Member>, ClientError> {
        self.get("/v1/fabric/members")
    }

    /// Revokes every certificate of a name.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn revoke(&self, name: NodeId) -> Result<Revoked, ClientError> {
        self.post("/v1/fabric/revoke", &RevokeRequest { name })
    }

    /// Asks the daemon to drain and stop.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn shutdown(&self) -> Result<Done, ClientError> {
        self.post("/v1/fabric/shutdown", &())
    }

    /// Follows one transfer until it has ended, or all of them.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn follow(&self, only: Option<TransferId>) -> Result<TransferStream, ClientError> {
        let query = only.map_or_else(String::new, |id| format!("?transfer={id}"));
        let request = self.agent.get(format!("{}/v1/fabric/events{query}", self.base));
        let silence = Some(TransferStream::SILENCE_MAX);
        let request = request.header("authorization", self.token.authorization());
        let answer = request
            .config()
            .timeout_recv_response(silence)
            .timeout_per_read(silence)
            .build()
            .call();
        let answer = self.succeeded(answer.map_err(|error| self.broken(error))?)?;
        Ok(TransferStream::new(answer.into_body().into_reader()))
    }

    /// Begins to send the file or folder behind `file`; the order's path must lead to it.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn send(&self, order: &SendOrder, file: BorrowedFd<'_>) -> Result<Accepted, ClientError> {
        let mut socket = knock(&self.data_dir)?;
        let wait = Duration::from_millis(order.wait_ms).saturating_add(ANSWER_MAX);
        let request = frame::encode(&SocketRequest::Send(order.clone()))
            .map_err(|error| ClientError::Refused(ApiError::of(ErrorCode::Usage, &error)))?;
        let mut exchange = || -> io::Result<Vec<u8>> {
            socket.set_read_timeout(Some(wait))?;
            socket.set_write_timeout(Some(ANSWER_MAX))?;
            let sent = frame::send_with_descriptor(socket.as_fd(), &request, file)?;
            socket.write_all(&request[sent..])?;
            let mut length = [0; LENGTH_BYTES];
            socket.read_exact(&mut length)?;
            let length = frame::decode_length(length).ok_or(io::ErrorKind::InvalidData)?;
            let mut reply = vec![0; length];
            socket.read_exact(&mut reply)?;
            Ok(reply)
        };
        let reply = exchange().map_err(|error| match error.kind() {
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => ClientError::Late,
            _ => ClientError::Lost(error),
        })?;
        match serde_json::from_slice(&reply).map_err(|error| ClientError::Garbled(error.into()))? {
            SocketReply::Accepted(accepted) => Ok(accepted),
            SocketReply::Error(error) => Err(ClientError::Refused(error)),
        }
    }

    fn get<T: DeserializeOwned>(&self, route: &str) -> Result<T, ClientError> {
        let request = self
            .agent
            .get(format!("{}{route}", self.base))
            .header("authorization", self.token.authorization());
        let answer = request.config().timeout_global(Some(ANSWER_MAX)).build().call();
        self.answer(answer)
    }

    fn post<T: DeserializeOwned>(&self, route: &str, body: &impl Serialize) -> Result<T, ClientError> {
        let request = self
            .agent
            .post(format!("{}{route}", self.base))
            .header("authorization", self.token.authorization());
        // A ping takes as long as its echoes do.
        let longest = ANSWER_MAX + Duration::from_millis(HTTP_WAIT_MS_MAX);
        let answer = request
            .config()
            .timeout_global(Some(longest))
            .build()
            .send_json(body);
        self.answer(answer)
    }

    fn answer<T: DeserializeOwned>(
        &self,
        answer: Result<ureq::http::Response<ureq::Body>, ureq::Error>,
    ) -> Result<T, ClientError> {
        let mut answer = self.succeeded(answer.map_err(|error| self.broken(error))?)?;
        let text = answer
            .body_mut()
            .with_config()
            .limit(ANSWER_BYTES_MAX)
            .read_to_vec();
        let text = text.map_err(|error| self.broken(error))?;
        serde_json::from_slice(&text).map_err(|error| ClientError::Garbled(error.into()))
    }

    fn succeeded(
        &self,
        mut answer: ureq::http::Response<ureq::Body>,
    ) -> Result<ureq::http::Response<ureq::Body>, ClientError> {
        if answer.status().is_success() {
            return Ok(answer);
        }
        let text = answer
            .body_mut()
            .with_config()
            .limit(ANSWER_BYTES_MAX)
            .read_to_vec();
        let text = text.map_err(|error| self.broken(error))?;
        match serde_json::from_slice::<ErrorBody>(&text) {
            Ok(body) => Err(ClientError::Refused(body.error)),
            Err(error) => Err(ClientError::Garbled(error.into())),
        }
    }

    fn broken(&self, error: ureq::Error) -> ClientError {
        match error {
            ureq::Error::Timeout(_) => ClientError::Late,
            ureq::Error::ConnectionFailed | ureq::Error::HostNotFound => self.not_running(),
            ureq::Error::Io(error) if error.kind() == io::ErrorKind::ConnectionRefused => self.not_running(),
            ureq::Error::Io(error) => ClientError::Lost(error),
            other => ClientError::Lost(io::Error::other(other)),
        }
    }

    fn not_running(&self) -> ClientError {
        ClientError::NotRunning {
            path: self.data_dir.path().to_path_buf(),
        }
    }
}

/// Connects to the socket of a data folder, where only its own daemon can answer.
fn knock(data_dir: &DataDir) -> Result<UnixStream, ClientError> {
    let socket = SocketPath::of(data_dir).and_then(|path| UnixStream::connect(path.as_path()));
    socket.map_err(|error| match error.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => ClientError::NotRunning {
            path: data_dir.path().to_path_buf(),
        },
        _ => ClientError::File(PathError::io("connect to", &data_dir.api_socket())(error)),
    })
}
