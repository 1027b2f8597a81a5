//! What a layout's turn looks at: its cluster, the other layouts of that cluster, and the meta group's leader.

use althing_crds::{RaftCluster, ShardLayout, ValidatedLayout, names};
use althing_plan::layout::claims::Claim;
use althing_plan::layout::{ClusterSeen, LayoutObserved, Seen};
use kube::api::ListParams;
use kube::{Api, Resource, ResourceExt};

use crate::admin::AdminError;
use crate::context::Context;
use crate::error::Error;
use crate::observe::leader_url;

/// What was seen.
pub(super) struct World {
    /// For the planner.
    pub(super) observed: LayoutObserved,
    /// Admin URL of the member that leads the meta group.
    pub(super) leader: Option<String>,
}

/// Looks. Fails if the API server cannot be asked.
pub(super) async fn observe(context: &Context, raw: &ShardLayout, layout: &ValidatedLayout) -> Result<World, Error> {
    let namespace = raw.namespace().unwrap_or_else(|| "default".to_owned());
    let clusters: Api<RaftCluster> = Api::namespaced(context.client.clone(), &namespace);
    let doing = format!("read RaftCluster {}", layout.cluster);
    let cluster = clusters.get_opt(&layout.cluster).await.map_err(Error::kube(doing))?;
    let leader = match &cluster {
        Some(cluster) => leader_url(context, &namespace, &layout.cluster, cluster.uid().as_deref()).await?,
        None => None,
    };
    let observed = LayoutObserved {
        cluster: cluster.as_ref().map(|cluster| ClusterSeen {
            bootstrapped: cluster.status.as_ref().is_some_and(|status| status.bootstrapped),
            paused: cluster.spec.paused,
            deleting: cluster.meta().deletion_timestamp.is_some(),
        }),
        claims: claims(context, &namespace, &layout.cluster).await?,
        finalizer: raw.finalizers().iter().any(|name| name == names::FINALIZER_KEYSPACE),
        layout: self::layout(context, leader.as_deref()).await,
    };
    Ok(World { observed, leader })
}

/// What the leader says of the layout.
pub(super) async fn layout(context: &Context, leader: Option<&str>) -> Seen {
    let Some(url) = leader else {
        return Seen::NoLeader;
    };
    match context.admin.layout(url).await {
        Ok(layout) => Seen::Layout(layout),
        // A node without the path has no words for the refusal either.
        Err(AdminError::Strange { status: 404, .. }) => Seen::NotServed,
        Err(error @ (AdminError::Silent { .. } | AdminError::Refused { .. } | AdminError::Strange { .. })) => {
            tracing::info!(%error, "the leader does not tell the layout");
            Seen::NoLeader
        }
    }
}

/// What the layouts of a cluster claim of it.
pub(crate) async fn claims(context: &Context, namespace: &str, cluster: &str) -> Result<Vec<Claim>, Error> {
    let layouts: Api<ShardLayout> = Api::namespaced(context.client.clone(), namespace);
    let selected = ListParams::default().fields(&format!("spec.clusterRef.name={cluster}"));
    let listed = layouts
        .list(&selected)
        .await
        .map_err(Error::kube(format!("list the ShardLayouts of {cluster}")))?;
    Ok(listed
        .items
        .iter()
        .filter(|layout| layout.spec.cluster_ref.name == cluster)
        .map(|layout| Claim {
            layout: layout.name_any(),
            born: layout
                .meta()
                .creation_timestamp
                .as_ref()
                .map_or(0, |born| born.0.as_second()),
            keyspace: layout.spec.keyspace.clone(),
            port: layout.spec.port.and_then(|port| u16::try_from(port).ok()),
        })
        .collect())
}
