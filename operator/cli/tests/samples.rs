//! The samples are valid under the custom resources' own schema and rules.

use althing_crds::{RaftCluster, ShardLayout, ValidatedCluster, ValidatedLayout};
use serde_json::Value;

#[test]
fn every_sample_declares_a_valid_cluster_and_layouts_of_it() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../manifests/samples");
    let mut seen = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let text = std::fs::read_to_string(&path).unwrap();
        let documents: Vec<Value> = serde_saphyr::from_multiple(&text).unwrap();
        let (cluster, layouts) = documents.split_first().expect("a cluster and its layouts");
        let cluster: RaftCluster = serde_json::from_value(cluster.clone()).unwrap();
        let cluster = ValidatedCluster::try_from(&cluster).unwrap();
        let mut keyspaces = Vec::new();
        for layout in layouts {
            let layout: ShardLayout = serde_json::from_value(layout.clone()).unwrap();
            let layout = ValidatedLayout::try_from(&layout).unwrap();
            assert_eq!(layout.cluster, cluster.name, "{}", path.display());
            keyspaces.push(format!("{}:{}", layout.keyspace, layout.shards));
        }
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        seen.push((name, cluster.members.get(), keyspaces.join(" ")));
    }
    seen.sort();
    let expected = [
        ("five.yaml", 5, "default:1"),
        ("hash.yaml", 3, "locks:4"),
        ("keyspaces.yaml", 3, "default:1 events:1"),
        ("quickstart.yaml", 3, "default:1"),
        ("shards.yaml", 5, "default:4"),
        ("single.yaml", 1, "default:1"),
    ];
    assert_eq!(
        seen,
        expected.map(|(name, members, keyspaces)| (name.to_owned(), members, keyspaces.to_owned()))
    );
}
