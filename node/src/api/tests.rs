//! The real server, socket and client around a daemon that is made up.

mod fake;
mod http;
mod shapes;
mod sources;

use std::net::SocketAddr;
use std::sync::Arc;
use std::thread::JoinHandle;

use tokio::sync::watch;

use super::{ApiServer, Token};
use crate::client::Client;
use crate::config::FabricConfig;
use crate::paths::DataDir;

pub(crate) use fake::FakeControl;

/// A running API in a data folder of its own.
pub(crate) struct Daemon {
    pub(crate) control: Arc<FakeControl>,
    pub(crate) data_dir: DataDir,
    pub(crate) folder: tempfile::TempDir,
    pub(crate) address: SocketAddr,
    stop: watch::Sender<bool>,
    thread: Option<JoinHandle<()>>,
}

impl Daemon {
    pub(crate) fn start() -> Self {
        Self::start_with(|_| {})
    }

    pub(crate) fn start_with(change: impl FnOnce(&mut FabricConfig)) -> Self {
        Self::start_in(tempfile::tempdir().unwrap(), change)
    }

    pub(crate) fn start_in(folder: tempfile::TempDir, change: impl FnOnce(&mut FabricConfig)) -> Self {
        let data_dir = DataDir::at(folder.path().join("data"));
        data_dir.create().unwrap();
        let mut config = FabricConfig::default();
        change(&mut config);
        let control = Arc::new(FakeControl::default());
        let (stop, stopping) = watch::channel(false);
        let (ready, bound) = std::sync::mpsc::sync_channel(1);
        let (served, there) = (Arc::clone(&control), data_dir.clone());
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            runtime.block_on(async move {
                let server = ApiServer::bind(&there, &config).await.unwrap();
                ready.send(server.address()).unwrap();
                server.serve(served, stopping).await;
            });
        });
        let address = bound.recv().unwrap();
        Self {
            control,
            data_dir,
            folder,
            address,
            stop,
            thread: Some(thread),
        }
    }

    pub(crate) fn client(&self) -> Client {
        Client::connect(&self.data_dir).unwrap()
    }

    pub(crate) fn token(&self) -> String {
        Token::read(&self.data_dir).unwrap().unwrap().authorization()
    }

    pub(crate) fn stop(&mut self) {
        self.stop.send_replace(true);
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.stop();
    }
}
