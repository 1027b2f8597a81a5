//! Wires the parts together: lease, controllers, server, signals.

use std::fmt::Debug;
use std::sync::Arc;

use althing_crds::{RaftCluster, ShardLayout};
use futures::{FutureExt, StreamExt};
use k8s_openapi::api::core::v1::{ConfigMap, PersistentVolumeClaim, Pod, Service, ServiceAccount};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use kube::core::{DeserializeGuard, NamespaceResourceScope};
use kube::runtime::controller::{self, Controller};
use kube::runtime::reflector::ObjectRef;
use kube::runtime::watcher;
use kube::{Api, Client, Resource, ResourceExt};
use prometheus_client::registry::Registry;
use serde::de::DeserializeOwned;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

use crate::admin::AdminClient;
use crate::context::{Applied, Context};
use crate::lease::Election;
use crate::metrics::Metrics;
use crate::settings::Settings;
use crate::{cluster_controller, layout, serve};

/// Clusters that are reconciled at the same time. A turn is mostly waiting for members, so a few suffice; without a bound, a
/// restart would start them all at once.
const CONCURRENCY: u16 = 8;

/// Why the process ends.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RunError {
    /// No way to the API server.
    #[error("cannot reach the API server: {0}; in a pod it needs its service account, elsewhere a kubeconfig")]
    Client(kube::Error),
    /// Neither pod nor kubeconfig.
    #[error("cannot tell where the API server is: {0}")]
    Config(kube::config::InferConfigError),
    /// The admin client.
    #[error("cannot set up the client for nodes: {0}")]
    Admin(reqwest::Error),
    /// The port.
    #[error("cannot serve on {address}: {source}")]
    Listen {
        /// Where.
        address: std::net::SocketAddr,
        /// Cause.
        source: std::io::Error,
    },
    /// Signals.
    #[error("cannot listen for signals: {0}")]
    Signals(std::io::Error),
    /// The lease. The process ends, so that it cannot act beside its successor.
    #[error("leadership is lost: {0}")]
    Lease(String),
    /// A controller's stream has ended.
    #[error("a controller ended by itself")]
    Ended,
}

/// Runs until a signal, or until leadership is lost.
pub(crate) async fn run(settings: Settings) -> Result<(), RunError> {
    let mut terminate = signal(SignalKind::terminate()).map_err(RunError::Signals)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(RunError::Signals)?;
    let (stop, stopped) = watch::channel(false);
    let mut registry = Registry::default();
    let metrics = Metrics::new(&mut registry);
    let listener = TcpListener::bind(settings.listen)
        .await
        .map_err(|source| RunError::Listen {
            address: settings.listen,
            source,
        })?;
    let server = tokio::spawn(serve::serve(listener, registry, until(stopped.clone())));

    let config = kube::Config::infer().await.map_err(RunError::Config)?;
    let client = Client::try_from(config).map_err(RunError::Client)?;
    let admin = AdminClient::new().map_err(RunError::Admin)?;
    let mut election = Election::new(client.clone(), &settings);
    let context = Arc::new(Context::new(client, admin, metrics.clone(), settings));

    let outcome = tokio::select! {
        () = signalled(&mut terminate, &mut interrupt) => Ok(()),
        outcome = lead(&mut election, context, &metrics, stopped) => outcome,
    };
    // Reconciliations have been dropped at a point where they waited; every step is safe to repeat.
    metrics.leads(false);
    if outcome.is_ok() {
        election.release().await;
    }
    let _ = stop.send(true);
    match server.await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::warn!(%error, "the server ended with an error"),
        Err(error) => tracing::warn!(%error, "the server's task ended"),
    }
    outcome
}

async fn signalled(terminate: &mut tokio::signal::unix::Signal, interrupt: &mut tokio::signal::unix::Signal) {
    tokio::select! {
        _ = terminate.recv() => tracing::info!("terminated"),
        _ = interrupt.recv() => tracing::info!("interrupted"),
    }
}

async fn until(mut stopped: watch::Receiver<bool>) {
    // An error means that the sender is gone: the process is ending.
    let _ = stopped.wait_for(|stop| *stop).await;
}

/// Waits for the lease, then acts while it is held.
async fn lead(
    election: &mut Election,
    context: Arc<Context>,
    metrics: &Metrics,
    stopped: watch::Receiver<bool>,
) -> Result<(), RunError> {
    tracing::info!("waiting for the lease");
    election.acquired().await;
    tracing::info!("acting");
    metrics.leads(true);
    tokio::select! {
        why = election.lost() => Err(RunError::Lease(why)),
        () = controllers(context, stopped) => Err(RunError::Ended),
    }
}

async fn controllers(context: Arc<Context>, stopped: watch::Receiver<bool>) {
    let clusters = clusters(&context, until(stopped.clone()));
    let layouts = layouts(&context, until(stopped));
    futures::future::join(clusters, layouts).await;
}

/// All namespaces, or the one.
fn api<K>(context: &Context) -> Api<K>
where
    K: Resource<Scope = NamespaceResourceScope>,
    K::DynamicType: Default,
{
    match context.settings.namespace() {
        Some(namespace) => Api::namespaced(context.client.clone(), namespace),
        None => Api::all(context.client.clone()),
    }
}

fn bounded() -> controller::Config {
    controller::Config::default().concurrency(CONCURRENCY)
}

async fn clusters(context: &Arc<Context>, stopped: impl Future<Output = ()> + Send + Sync + 'static) {
    let controller = Controller::new(
        api::<DeserializeGuard<RaftCluster>>(context),
        watcher::Config::default(),
    )
    .with_config(bounded());
    // Claims may have no owner, so children are told by their labels.
    let controller = watched::<Pod>(controller, context);
    let controller = watched::<PersistentVolumeClaim>(controller, context);
    let controller = watched::<Service>(controller, context);
    let controller = watched::<ConfigMap>(controller, context);
    let controller = watched::<ServiceAccount>(controller, context);
    let controller = watched::<PodDisruptionBudget>(controller, context);
    // A layout's port is on the cluster's service.
    let controller = controller.watches(
        api::<DeserializeGuard<ShardLayout>>(context),
        watcher::Config::default(),
        |layout| {
            let cluster = layout.0.as_ref().ok()?.spec.cluster_ref.name.clone();
            Some(ObjectRef::new(&cluster).within(&layout.namespace()?))
        },
    );
    controller
        .graceful_shutdown_on(stopped)
        .run(
            cluster_controller::reconcile,
            cluster_controller::error_policy,
            Arc::clone(context),
        )
        .for_each(|outcome| async move {
            if let Err(error) = outcome {
                tracing::debug!(%error, "a turn ended with an error");
            }
        })
        .await;
}

fn watched<K>(
    controller: Controller<DeserializeGuard<RaftCluster>>,
    context: &Arc<Context>,
) -> Controller<DeserializeGuard<RaftCluster>>
where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope> + Clone + Debug + DeserializeOwned + Send + 'static,
{
    let ours = watcher::Config::default().labels(&format!(
        "app.kubernetes.io/managed-by={}",
        althing_crds::names::MANAGED_BY
    ));
    let applied = Arc::clone(context.applied());
    controller.watches(api::<K>(context), ours, move |object: K| cluster_of(&object, &applied))
}

/// The cluster that an object belongs to, by its labels. What was applied for it is applied again: this may be drift.
fn cluster_of<K: Resource<DynamicType = ()>>(
    object: &K,
    applied: &Applied,
) -> Option<ObjectRef<DeserializeGuard<RaftCluster>>> {
    let name = object.labels().get("app.kubernetes.io/instance")?;
    let namespace = object.namespace()?;
    applied.forget(&format!("{namespace}/{name}"));
    Some(ObjectRef::new(name).within(&namespace))
}

async fn layouts(context: &Arc<Context>, stopped: impl Future<Output = ()> + Send + Sync + 'static) {
    let controller = Controller::new(
        api::<DeserializeGuard<ShardLayout>>(context),
        watcher::Config::default(),
    )
    .with_config(bounded());
    let store = controller.store();
    controller
        .watches(
            api::<DeserializeGuard<RaftCluster>>(context),
            watcher::Config::default(),
            move |cluster| {
                let (name, namespace) = (cluster.name_any(), cluster.namespace());
                store
                    .state()
                    .into_iter()
                    .filter(|layout| {
                        layout.namespace() == namespace
                            && layout
                                .0
                                .as_ref()
                                .is_ok_and(|layout| layout.spec.cluster_ref.name == name)
                    })
                    .map(|layout| ObjectRef::from_obj(&*layout))
                    .collect::<Vec<_>>()
            },
        )
        .graceful_shutdown_on(stopped)
        .run(layout::reconcile, layout::error_policy, Arc::clone(context))
        .for_each(|outcome| {
            if let Err(error) = outcome {
                tracing::debug!(%error, "a turn ended with an error");
            }
            std::future::ready(()).boxed()
        })
        .await;
}
