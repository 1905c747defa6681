//! Why connections end: what this peer says when it closes, and what it makes of every other end.

use std::fmt;

use quinn::ConnectionError;

use crate::tls::Refusal;

/// What a closing peer says. The numbers are the application error codes of CONNECTION_CLOSE and part of the wire format.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum CloseReason {
    /// Code 0: no longer needed.
    Normal,
    /// Code 1: another connection of the same pair and purpose is kept.
    Duplicate,
    /// Code 2: the peer was restarted and has a newer connection.
    Restarted,
    /// Code 3: the membership was revoked.
    Revoked,
    /// Code 4: the membership has expired.
    Expired,
    /// Code 5: the other side broke the protocol.
    Violation,
    /// Code 6: too many connections, of this peer, this address or in all.
    LimitReached,
    /// Code 7: the process ends.
    ShuttingDown,
    /// Code 8: nothing happened for a while.
    Idle,
    /// Code 9: the membership has changed and the peer should connect anew.
    Renewed,
}

impl CloseReason {
    const ALL: [Self; 10] = [
        Self::Normal,
        Self::Duplicate,
        Self::Restarted,
        Self::Revoked,
        Self::Expired,
        Self::Violation,
        Self::LimitReached,
        Self::ShuttingDown,
        Self::Idle,
        Self::Renewed,
    ];

    /// The application error code on the wire.
    #[must_use]
    pub const fn code(self) -> u32 {
        match self {
            Self::Normal => 0,
            Self::Duplicate => 1,
            Self::Restarted => 2,
            Self::Revoked => 3,
            Self::Expired => 4,
            Self::Violation => 5,
            Self::LimitReached => 6,
            Self::ShuttingDown => 7,
            Self::Idle => 8,
            Self::Renewed => 9,
        }
    }

    /// Reads a code; none when it is not one of ours.
    #[must_use]
    pub fn from_code(code: u64) -> Option<Self> {
        Self::ALL
            .into_iter()
            .find(|it| u64::from(it.code()) == code)
    }

    /// A stable word, as in the close frame, logs and JSON.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Normal => "normal",
            Self::Duplicate => "duplicate",
            Self::Restarted => "restarted",
            Self::Revoked => "revoked",
            Self::Expired => "expired",
            Self::Violation => "violation",
            Self::LimitReached => "limit-reached",
            Self::ShuttingDown => "shutting-down",
            Self::Idle => "idle",
            Self::Renewed => "renewed",
        }
    }
}

impl fmt::Display for CloseReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.word())
    }
}

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
        /// Its meaning, when it is one of ours.
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
                Self::Local(closed_for.unwrap_or(CloseReason::ShuttingDown))
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
            ConnectionError::VersionMismatch | ConnectionError::CidsExhausted => {
                Self::Transport { code: 0 }
            }
        }
    }
}
