//! The samples are valid under the custom resources' own schema and rules.

use althing_crds::{RaftCluster, ShardLayout, ValidatedCluster, ValidatedLayout};
use serde_json::Value;

#[test]
fn every_sample_declares_a_valid_cluster_and_a_layout_of_it() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../manifests/samples");
    let mut seen = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let text = std::fs::read_to_string(&path).unwrap();
        let documents: Vec<Value> = serde_saphyr::from_multiple(&text).unwrap();
        let [cluster, layout] = documents.as_slice() else {
            panic!("{}: a cluster and a layout", path.display())
        };
        let cluster: RaftCluster = serde_json::from_value(cluster.clone()).unwrap();
        let cluster = ValidatedCluster::try_from(&cluster).unwrap();
        let layout: ShardLayout = serde_json::from_value(layout.clone()).unwrap();
        let layout = ValidatedLayout::try_from(&layout).unwrap();
        assert_eq!(layout.cluster, cluster.name, "{}", path.display());
        seen.push((
            path.file_name().unwrap().to_string_lossy().into_owned(),
            cluster.members.get(),
        ));
    }
    seen.sort();
    let expected = [("five.yaml", 5), ("quickstart.yaml", 3), ("single.yaml", 1)];
    assert_eq!(seen, expected.map(|(name, members)| (name.to_owned(), members)));
}
