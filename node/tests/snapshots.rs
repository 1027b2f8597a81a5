//! Snapshots between real processes.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is the failure of the test")]

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use support::{Node, leader, loopback, three};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

const VALUE_BYTES: usize = 3_000;

/// Writes more than the checkpoint's bytes and the log's tail, so that the leader cuts its log.
async fn write_past_the_log(leader: &Node) {
    let value = "x".repeat(VALUE_BYTES);
    let kv = leader.kv().await;
    let writers = (0..64).map(|writer| {
        let (kv, value) = (kv.clone(), value.clone());
        tokio::spawn(async move {
            for number in 0..200 {
                let request = althing_api::pb::etcdserverpb::PutRequest {
                    key: format!("w{writer}/{number}").into(),
                    value: value.clone().into(),
                    ..Default::default()
                };
                kv.clone().put(request).await.unwrap();
            }
        })
    });
    for writer in writers.collect::<Vec<_>>() {
        writer.await.unwrap();
    }
}

async fn has_all(node: &Node) {
    let value = "x".repeat(VALUE_BYTES);
    for key in ["w0/0", "w63/199"] {
        assert_eq!(node.get(key).await.unwrap().as_deref(), Some(value.as_str()));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_that_missed_what_the_log_no_longer_holds_gets_a_snapshot() {
    let mut nodes = three().await;
    let all: Vec<_> = nodes.iter().collect();
    let name = leader(&all).await.name.clone();
    let behind = nodes.iter().position(|node| node.name != name).unwrap();
    nodes[behind].kill();
    write_past_the_log(nodes.iter().find(|node| node.name == name).unwrap()).await;

    nodes[behind].run();
    nodes[behind].ready().await;
    let log = std::fs::read_to_string(nodes[behind].log_path()).unwrap();
    assert!(log.contains("installed a snapshot"), "{log}");
    has_all(&nodes[behind]).await;
    nodes[behind].put("k", "v").await.unwrap();

    // And it can start from it.
    nodes[behind].kill();
    nodes[behind].run();
    nodes[behind].ready().await;
    has_all(&nodes[behind]).await;
}

/// Stands between a member and its peers, and cuts the first connection over which so many bytes came.
struct Cutter {
    address: String,
    target: watch::Sender<Option<String>>,
    cut: Arc<AtomicBool>,
}

impl Cutter {
    async fn after(bytes: u64) -> Self {
        let listener = TcpListener::bind((loopback(), 2390)).await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let (target, mut known) = watch::channel(None::<String>);
        let cut = Arc::new(AtomicBool::new(false));
        let done = Arc::clone(&cut);
        tokio::spawn(async move {
            let Ok(target) = known
                .wait_for(Option::is_some)
                .await
                .map(|target| target.clone().unwrap())
            else {
                return;
            };
            while let Ok((caller, _)) = listener.accept().await {
                if let Ok(callee) = TcpStream::connect(&target).await {
                    tokio::spawn(Self::connection(caller, callee, bytes, Arc::clone(&done)));
                }
            }
        });
        Self { address, target, cut }
    }

    async fn connection(caller: TcpStream, callee: TcpStream, bytes: u64, done: Arc<AtomicBool>) {
        let (from_caller, to_caller) = caller.into_split();
        let (from_callee, to_callee) = callee.into_split();
        let passed = AtomicU64::new(0);
        tokio::select! {
            () = pass(from_caller, to_callee, |len| {
                let first = passed.fetch_add(len, Ordering::Relaxed) > bytes && !done.swap(true, Ordering::Relaxed);
                !first
            }) => {}
            () = pass(from_callee, to_caller, |_| true) => {}
        }
    }
}

/// Passes bytes on while it may.
async fn pass(mut from: impl AsyncRead + Unpin, mut to: impl AsyncWrite + Unpin, mut may: impl FnMut(u64) -> bool) {
    let mut buffer = vec![0; 64 << 10];
    while let Ok(len @ 1..) = from.read(&mut buffer).await {
        if !may(len as u64) || to.write_all(&buffer[..len]).await.is_err() {
            return;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_whose_connection_breaks_is_carried_on_and_not_begun_anew() {
    let cutter = Cutter::after(8 << 20).await;
    let first = Node::start("orders-0");
    let second = Node::start("orders-1");
    let mut behind = Node::start_with("orders-2", &["--advertise-peer", &cutter.address]);
    cutter.target.send(Some(behind.peer_addr())).unwrap();
    first.bootstrap().await;
    first.add(&second).await;
    first.add(&behind).await;
    behind.kill();
    let lead = leader(&[&first, &second]).await;
    write_past_the_log(lead).await;
    assert!(!cutter.cut.load(Ordering::Relaxed));

    behind.run();
    behind.ready().await;
    assert!(
        cutter.cut.load(Ordering::Relaxed),
        "the snapshot went through the cutter"
    );
    let log = std::fs::read_to_string(behind.log_path()).unwrap();
    // What was still in sockets is lost; what the disk had taken is not.
    assert!(
        log.contains("going on with a snapshot that broke off"),
        "it began anew:\n{log}"
    );
    assert!(log.contains("installed a snapshot"), "{log}");
    has_all(&behind).await;
}
