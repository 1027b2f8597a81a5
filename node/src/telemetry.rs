//! Logs for people and machines, and traces and metrics over OTLP.
//!
//! A request is traced or not when it comes in. An untraced one costs one atomic addition. A traced one gets its inner spans
//! (propose, fsync, commit, apply) afterwards, from the moments that were noted on its way: no span crosses a thread.

use crate::config::{Config, LogFormat};
use crate::metrics::{Method, Metrics, Outcome, Proposal, Request, Shard};
use crate::shared::Shared;
use crate::waiters::Timeline;
use althing_api::Observer;
use http::HeaderMap;
use opentelemetry::metrics::MeterProvider;
use opentelemetry::propagation::{Extractor, TextMapPropagator};
use opentelemetry::trace::{Span as _, TraceContextExt, Tracer as _, TracerProvider};
use opentelemetry::{Context, KeyValue};
use opentelemetry_otlp::WithExportConfig;
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::metrics::SdkMeterProvider;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::{Sampler, SdkTracer, SdkTracerProvider};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};
use tonic::Code;
use tracing::subscriber::Interest;
use tracing::{Metadata, Span};
use tracing_opentelemetry::OpenTelemetrySpanExt;
use tracing_subscriber::filter::{FilterExt, LevelFilter, Targets, dynamic_filter_fn};
use tracing_subscriber::layer::{Filter, SubscriberExt};
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Layer, Registry};

/// Why telemetry cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    /// The exporter refuses the endpoint.
    #[error("cannot export to {endpoint}: {source}")]
    Exporter {
        /// Where to.
        endpoint: String,
        /// Why not.
        source: opentelemetry_otlp::ExporterBuildError,
    },
    /// A log was set up before.
    #[error("cannot set up the log: {0}")]
    Log(#[from] tracing_subscriber::util::TryInitError),
}

/// What must be flushed at the end.
pub struct Telemetry {
    tracer: Tracer,
    traces: Option<SdkTracerProvider>,
    meters: Option<SdkMeterProvider>,
}

impl Telemetry {
    /// Sets up the process's log, and the exporters if there is an endpoint. Once per process, inside a tokio runtime.
    ///
    /// # Errors
    /// If the endpoint cannot be used, or a log is there already.
    pub fn start(config: &Config) -> Result<Self, TelemetryError> {
        // The filter was parsed with the settings; `info` stands in if that ever changes.
        let filter: Targets = config
            .log_filter
            .parse()
            .unwrap_or_else(|_| Targets::new().with_default(LevelFilter::INFO));
        let filter = filter.and(Sparing::filter());
        let log = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
        let log: Box<dyn Layer<Registry> + Send + Sync> = match config.log_format {
            LogFormat::Text => log.with_ansi(false).with_filter(filter).boxed(),
            LogFormat::Json => log.json().flatten_event(true).with_filter(filter).boxed(),
        };
        let Some(endpoint) = &config.otlp_endpoint else {
            tracing_subscriber::registry().with(log).try_init()?;
            return Ok(Self {
                tracer: Tracer::default(),
                traces: None,
                meters: None,
            });
        };
        let failed = |source| TelemetryError::Exporter {
            endpoint: endpoint.clone(),
            source,
        };
        let resource = Resource::builder()
            .with_service_name("althing-node")
            .with_attribute(KeyValue::new("service.instance.id", config.name.clone()))
            .with_attribute(KeyValue::new("service.version", env!("CARGO_PKG_VERSION")))
            .build();
        let exporter = opentelemetry_otlp::SpanExporter::builder()
            .with_tonic()
            .with_endpoint(endpoint)
            .build()
            .map_err(failed)?;
        // Sampling is decided before a span is made, by `Tracer::samples`.
        let traces = SdkTracerProvider::builder()
            .with_batch_exporter(exporter)
            .with_sampler(Sampler::AlwaysOn)
            .with_resource(resource.clone())
            .build();
        let exporter = opentelemetry_otlp::MetricExporter::builder()
            .with_tonic()
            .with_endpoint(endpoint)
            .build()
            .map_err(failed)?;
        let meters = SdkMeterProvider::builder()
            .with_periodic_exporter(exporter)
            .with_resource(resource)
            .build();
        let tracer = traces.tracer("althing-node");
        let spans = tracing_opentelemetry::layer()
            .with_tracer(tracer.clone())
            .with_filter(Targets::new().with_target("althing_node", LevelFilter::INFO));
        tracing_subscriber::registry().with(log).with(spans).try_init()?;
        // A share of 2^64: the accumulator wraps once per sampled request.
        let step = (config.trace_sample_ratio * u64::MAX as f64) as u64;
        let inner = Sampling {
            tracer,
            propagator: TraceContextPropagator::new(),
            step,
            // Full, so that the first request is in the share.
            sum: AtomicU64::new(u64::MAX),
        };
        Ok(Self {
            tracer: Tracer(Some(Arc::new(inner))),
            traces: Some(traces),
            meters: Some(meters),
        })
    }

    /// Decides which requests are traced, and traces them.
    #[must_use]
    pub fn tracer(&self) -> Tracer {
        self.tracer.clone()
    }

    /// Exports the node's most telling figures beside its traces, over all of its groups.
    pub fn export_metrics(&self, shared: &Arc<Shared>) {
        let Some(meters) = &self.meters else { return };
        let meter = meters.meter("althing-node");
        macro_rules! gauge {
            ($name:literal, $read:expr) => {{
                // The exporter outlives the node.
                let shared = Arc::downgrade(shared);
                let read: fn(&Shared) -> i64 = $read;
                meter
                    .i64_observable_gauge($name)
                    .with_callback(move |to| {
                        if let Some(shared) = shared.upgrade() {
                            to.observe(read(&shared), &[]);
                        }
                    })
                    .build();
            }};
        }
        gauge!("althing.groups", |shared| shared.count_groups().all as i64);
        gauge!("althing.groups.led", |shared| shared.count_groups().led as i64);
        gauge!("althing.groups.leaderless", |shared| shared.count_groups().leaderless
            as i64);
        gauge!("althing.proposals.pending", |shared| {
            let labels = Shard { shard: 0 };
            shared.metrics.proposals_pending.sum(labels, Gauge::get)
        });
        gauge!("althing.wal.bytes", |shared| shared.metrics.wal_bytes.get());
        gauge!("althing.volume.free_bytes", |shared| shared.metrics.volume_free.get());
        let applied = Arc::downgrade(shared);
        meter
            .u64_observable_counter("althing.proposals.applied")
            .with_callback(move |to| {
                if let Some(shared) = applied.upgrade() {
                    let labels = Proposal {
                        shard: 0,
                        outcome: Outcome::applied,
                    };
                    to.observe(shared.metrics.proposals.sum(labels, Counter::get), &[]);
                }
            })
            .build();
    }

    /// Sends what waits; bounded by the exporters' own timeouts.
    pub fn stop(self) {
        if let Some(traces) = self.traces
            && let Err(error) = traces.shutdown()
        {
            tracing::warn!(%error, "some traces were not sent");
        }
        if let Some(meters) = self.meters
            && let Err(error) = meters.shutdown()
        {
            tracing::warn!(%error, "some metrics were not sent");
        }
    }
}

/// A collector that is away makes the exporters complain with every batch; once a minute is enough to notice.
struct Sparing;

impl Sparing {
    const INTERVAL_SECONDS: u64 = 60;

    fn filter() -> impl Filter<Registry> {
        let started = Instant::now();
        // Seconds since then at which the next complaint may be logged.
        let next = AtomicU64::new(0);
        let is_its = |event: &Metadata<'_>| event.target().starts_with("opentelemetry");
        dynamic_filter_fn(move |event, _| {
            if !is_its(event) {
                return true;
            }
            let now = started.elapsed().as_secs();
            let due = next.load(Ordering::Relaxed);
            now >= due
                && next
                    .compare_exchange(due, now + Self::INTERVAL_SECONDS, Ordering::Relaxed, Ordering::Relaxed)
                    .is_ok()
        })
        // Both say that everybody else's events are the other filter's business. Without them every trace event of h2 and sled, and
        // there are dozens per request, would be made and then be asked about here.
        .with_callsite_filter(move |event| {
            if is_its(event) {
                Interest::sometimes()
            } else {
                Interest::always()
            }
        })
        .with_max_level_hint(LevelFilter::TRACE)
    }
}

struct Sampling {
    tracer: SdkTracer,
    propagator: TraceContextPropagator,
    step: u64,
    sum: AtomicU64,
}

/// Decides which requests are traced, and traces them. Traces nothing by default.
#[derive(Clone, Default)]
pub struct Tracer(Option<Arc<Sampling>>);

struct Headers<'a>(&'a HeaderMap);

impl Extractor for Headers<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key)?.to_str().ok()
    }

    fn keys(&self) -> Vec<&str> {
        self.0.keys().map(http::HeaderName::as_str).collect()
    }
}

impl Sampling {
    /// An even share of all requests, without randomness.
    fn samples(&self) -> bool {
        self.sum
            .fetch_add(self.step, Ordering::Relaxed)
            .checked_add(self.step)
            .is_none()
    }
}

impl Tracer {
    fn span(&self, method: &'static str, headers: &HeaderMap) -> Span {
        let Some(sampling) = &self.0 else { return Span::none() };
        let parent = sampling
            .propagator
            .extract_with_context(&Context::new(), &Headers(headers));
        let caller = parent.span().span_context().clone();
        // A caller that traces wants to see what happens here.
        let wanted = if caller.is_valid() {
            caller.is_sampled()
        } else {
            sampling.samples()
        };
        if !wanted {
            return Span::none();
        }
        let span = tracing::info_span!(
            "grpc",
            otel.name = method,
            otel.kind = "server",
            rpc.system = "grpc",
            rpc.method = method
        );
        if caller.is_valid()
            && let Err(error) = span.set_parent(parent)
        {
            tracing::debug!(%error, "a trace is not joined to its caller's");
        }
        span
    }

    /// Adds what happened to a command to the trace of the request that runs now, if it is traced.
    pub fn follow(&self, shared: &Shared, timeline: &Timeline) {
        let Some(sampling) = &self.0 else { return };
        let span = Span::current();
        if span.is_none() {
            return;
        }
        let context = span.context();
        let add = |name: &'static str, from: Option<Instant>, to: Option<Instant>| {
            if let (Some(from), Some(to)) = (from, to) {
                let wall = |moment| shared.clock.wall_of(moment);
                let builder = sampling.tracer.span_builder(name).with_start_time(wall(from));
                builder
                    .start_with_context(&sampling.tracer, &context)
                    .end_with_timestamp(wall(to));
            }
        };
        let sync = timeline.write.and_then(|write| shared.waiters.sync_of(write));
        add("propose", Some(timeline.submitted), timeline.proposed);
        add("fsync", sync.map(|(from, _)| from), sync.map(|(_, to)| to));
        add("commit", timeline.proposed, timeline.committed);
        add("apply", timeline.committed, timeline.applied);
    }
}

/// Counts and traces the requests of the client port.
pub struct RequestObserver {
    metrics: Arc<Metrics>,
    tracer: Tracer,
    /// Where requests that went well are counted, by method: found once, because they are nearly all there are.
    good: RwLock<BTreeMap<&'static str, (Counter, Histogram)>>,
}

impl RequestObserver {
    /// Into these metrics and traces.
    #[must_use]
    pub fn new(metrics: Arc<Metrics>, tracer: Tracer) -> Self {
        Self {
            metrics,
            tracer,
            good: RwLock::default(),
        }
    }

    fn find(&self, method: &'static str, code: Code) -> (Counter, Histogram) {
        let code = format!("{code:?}");
        (
            self.metrics
                .grpc_requests
                .get_or_create_owned(&Request { method, code }),
            self.metrics.grpc_duration.get_or_create_owned(&Method { method }),
        )
    }
}

fn note((requests, durations): &(Counter, Histogram), duration: Duration) {
    requests.inc();
    durations.observe(duration.as_secs_f64());
}

impl Observer for RequestObserver {
    fn observe(&self, method: &'static str, code: Code, duration: Duration) {
        if code != Code::Ok {
            return note(&self.find(method, code), duration);
        }
        if let Some(found) = self.good.read().unwrap_or_else(PoisonError::into_inner).get(method) {
            return note(found, duration);
        }
        let found = self.find(method, code);
        note(&found, duration);
        let mut good = self.good.write().unwrap_or_else(PoisonError::into_inner);
        good.insert(method, found);
    }

    fn span(&self, method: &'static str, headers: &HeaderMap) -> Span {
        self.tracer.span(method, headers)
    }
}
