//! Why connections end, as this side sees it. What a closing peer says is the protocol's [`CloseReason`].

use hyperfabric_protocol::neighbors::CloseReason;
use quinn::ConnectionError;

use crate::tls::Refusal;

/// Why a connection has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CloseCause {
    /// The peer has forgotten the connection: its process was restarted on the same address.
    #[error("the peer was restarted")]
    Reset,
    /// The peer has been silent for too long.
    #[error("the peer has fallen silent")]
    TimedOut,
    /// The peer closed it.
    #[error("the peer closed the connection (code {code})")]
    ClosedByPeer {
        /// The application error code.
        code: u64,
        /// Its meaning, when it is one of the protocol's.
        reason: Option<CloseReason>,
    },
    /// The peer did not let this peer in.
    #[error("the peer refused: this peer {0}")]
    Refused(Refusal),
    /// This side closed it.
    #[error("closed here ({0})")]
    Local(CloseReason),
    /// QUIC itself failed, on either side.
    #[error("transport failure (code {code:#x})")]
    Transport {
        /// The transport error code of RFC 9000, section 20.1.
        code: u64,
    },
}

impl CloseCause {
    pub(crate) fn from_quic(error: &ConnectionError, closed_for: Option<CloseReason>) -> Self {
        match error {
            ConnectionError::Reset => Self::Reset,
            ConnectionError::TimedOut => Self::TimedOut,
            ConnectionError::LocallyClosed => {
                // Without a reason the whole endpoint was closed.
                Self::Local(closed_for.unwrap_or(CloseReason::Shutdown))
            }
            ConnectionError::ApplicationClosed(close) => {
                let code = close.error_code.into_inner();
                Self::ClosedByPeer {
                    code,
                    reason: CloseReason::from_code(code),
                }
            }
            ConnectionError::ConnectionClosed(close) => {
                let code = u64::from(close.error_code);
                match Refusal::from_close(code, &close.reason) {
                    Some(refusal) => Self::Refused(refusal),
                    None => Self::Transport { code },
                }
            }
            ConnectionError::TransportError(error) => Self::Transport {
                code: u64::from(error.code),
            },
            ConnectionError::VersionMismatch | ConnectionError::CidsExhausted => Self::Transport { code: 0 },
        }
    }
}
