//! What happened in a demo, as a table and as JSON.

use hyperfabric_protocol::TransferId;
use serde::Serialize;

use super::super::output::table;
use super::super::units::{average_rate, rate, seconds, size};

/// What happened.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    /// How many processes the mesh had.
    pub(super) processes: usize,
    /// How long it took until all knew each other.
    pub(super) mesh_seconds: f64,
    /// The first transfer.
    pub(super) sent: Arrived,
    /// The second, whose receiver was killed.
    pub(super) resumed: Resumed,
    /// How long all of it took.
    pub(super) seconds: f64,
}

/// A transfer whose file has arrived, hashed by the demo at both ends.
#[derive(Debug, Serialize)]
pub(super) struct Arrived {
    pub(super) transfer_id: TransferId,
    pub(super) from: &'static str,
    pub(super) to: &'static str,
    pub(super) name: String,
    pub(super) bytes: u64,
    pub(super) seconds: f64,
    pub(super) blake3: String,
}

/// A transfer whose receiver was killed and started again.
#[derive(Debug, Serialize)]
pub(super) struct Resumed {
    #[serde(flatten)]
    pub(super) arrived: Arrived,
    /// How much was durable when the receiver was killed, as far as the sender knew.
    pub(super) killed_at_bytes: u64,
    /// How much the receiver still had after its restart, checked again.
    pub(super) resumed_bytes: u64,
    /// How long the receiver was gone.
    pub(super) restart_seconds: f64,
}

impl Report {
    /// Lays it out for people.
    pub(super) fn text(&self) -> String {
        let row = |step: &str, result: String, figures: String| [step.to_owned(), result, figures];
        let (sent, killed, resumed) = (&self.sent, &self.resumed, &self.resumed.arrived);
        let fresh = resumed.bytes.saturating_sub(killed.resumed_bytes);
        let rows = [
            row(
                "join",
                "a bootstrap peer admitted three nodes by ticket".to_owned(),
                format!("{} processes, {}", self.processes, seconds(self.mesh_seconds)),
            ),
            row("send", moved(sent), pace(sent)),
            row(
                "verify",
                "BLAKE3 of both files is equal".to_owned(),
                short(&sent.blake3),
            ),
            row(
                "kill",
                format!("{} killed in the middle of a second transfer", resumed.to),
                format!(
                    "{} of {} durable",
                    size(killed.killed_at_bytes),
                    size(resumed.bytes)
                ),
            ),
            row(
                "resume",
                format!("{} restarted, and the transfer went on", resumed.to),
                format!(
                    "{} kept, {} sent after it",
                    size(killed.resumed_bytes),
                    size(fresh)
                ),
            ),
            row(
                "verify",
                "BLAKE3 of both files is equal".to_owned(),
                short(&resumed.blake3),
            ),
        ];
        let table = table(["STEP", "RESULT", "FIGURES"], &rows);
        format!("{table}\nDone in {}.\n", seconds(self.seconds))
    }
}

fn moved(arrived: &Arrived) -> String {
    format!("{} > {}: {}", arrived.from, arrived.to, arrived.name)
}

fn pace(arrived: &Arrived) -> String {
    let average = rate(average_rate(arrived.bytes, arrived.seconds));
    format!(
        "{} in {}, {average}",
        size(arrived.bytes),
        seconds(arrived.seconds)
    )
}

fn short(blake3: &str) -> String {
    format!("{}...", blake3.get(..16).unwrap_or(blake3))
}
