//! A source that is rewritten while it is sent is not delivered, although its length stays the same.

use anyhow::{Result, ensure};
use hyperfabric_tests::files::overwrite;
use hyperfabric_tests::{Content, Exit, Folder, Mesh};

use crate::support::{MIB, TRANSFER_DEADLINE, ends_with, goes_on, is_moving, of_name, start_send};

const FILE_BYTES: u64 = 1024 * MIB;

#[test]
fn a_source_that_is_rewritten_while_it_is_sent_ends_at_both_ends() -> Result<()> {
    let mut mesh = Mesh::start("lab", &["alpha", "beta"])?;
    let [alpha, beta] = mesh.by_name();
    let folder = Folder::new()?;
    // What was sent already, and what was not yet.
    for (name, offset) in [("begin.bin", 0), ("end.bin", FILE_BYTES - MIB)] {
        let path = folder.sparse(name, FILE_BYTES)?;
        let send = start_send(alpha, &path, "beta")?;
        is_moving(alpha, name, 8 * MIB)?;
        // A receiver that stands still takes no more than the windows hold: the change falls into the transfer.
        let stalled = beta.stall()?;
        let done = of_name(alpha, name)?["done_bytes"].as_u64();
        ensure!(done < Some(FILE_BYTES / 2), "{done:?} bytes are sent already");
        overwrite(&path, offset, Content { bytes: MIB, seed: 1 })?;
        ensure!(path.metadata()?.len() == FILE_BYTES);
        drop(stalled);
        let outcome = send.wait(TRANSFER_DEADLINE)?.expect(Exit::Failed)?;
        ensure!(
            outcome.json()?["error"]["name"] == "source_changed",
            "{outcome:?}"
        );
        ends_with(alpha, name, "source_changed")?;
        ends_with(beta, name, "source_changed")?;
        ensure!(beta.received()?.is_empty(), "{:?}", beta.received()?);
    }
    let small = folder.random("small.bin", Content { bytes: 1000, seed: 2 })?;
    goes_on(alpha, &small, "beta")
}
