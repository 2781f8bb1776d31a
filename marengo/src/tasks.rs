//! The daemon's tasks, by name. A panic in any of them, or in a task of a library, ends the daemon:
//! half of it would go on with what the other half no longer keeps true. The data plane works
//! without it, and the next start takes it over.

use std::{future::Future, panic};

use tokio::{sync::watch, task::JoinHandle};
use tracing::{debug, error};

tokio::task_local! {
    static NAME: &'static str;
}

/// Tells of panics.
pub(crate) type Panics = watch::Receiver<Option<String>>;

/// Starts tasks.
#[derive(Clone, Debug, Default)]
pub(crate) struct Spawner {
    /// The name of the task that shall panic; for tests.
    order: Option<watch::Receiver<String>>,
}

impl Spawner {
    /// Makes a spawner whose tasks panic when their name is sent.
    pub(crate) fn with_faults() -> (Self, watch::Sender<String>) {
        let (sender, order) = watch::channel(String::new());
        (Self { order: Some(order) }, sender)
    }

    /// Starts a task.
    pub(crate) fn spawn<T: Send + 'static>(
        &self,
        name: &'static str,
        task: impl Future<Output = T> + Send + 'static,
    ) -> JoinHandle<T> {
        let Some(mut order) = self.order.clone() else {
            return tokio::spawn(NAME.scope(name, task));
        };
        tokio::spawn(NAME.scope(name, async move {
            tokio::select! {
                biased;
                output = task => output,
                Ok(_) = order.wait_for(|wanted| wanted == name) => {
                    panic!("the task {name} was told to panic")
                }
            }
        }))
    }
}

/// Logs every panic from now on, and tells of it.
pub(crate) fn watch_panics() -> Panics {
    let (sender, receiver) = watch::channel(None);
    panic::set_hook(Box::new(move |info| {
        let task = NAME.try_with(|name| *name).unwrap_or("unnamed");
        let reason = info.payload_as_str().unwrap_or("no reason given");
        let at = info.location().map(ToString::to_string).unwrap_or_default();
        error!(task, reason, at, "a task panicked; the data plane goes on without the daemon");
        debug!(backtrace = %std::backtrace::Backtrace::capture(), "where it panicked");
        // The first one is what the daemon ends with; later ones follow from it.
        sender.send_if_modified(|told| {
            let first = told.is_none();
            told.get_or_insert_with(|| format!("the {task} task panicked: {reason}"));
            first
        });
    }));
    receiver
}

/// Waits for a panic, and says which.
pub(crate) async fn panicked(panics: &mut Panics) -> String {
    match panics.wait_for(Option::is_some).await {
        Ok(told) => told.clone().unwrap_or_default(),
        // The hook was replaced, and with it went the sender: nothing tells of panics any more.
        Err(_) => std::future::pending().await,
    }
}
