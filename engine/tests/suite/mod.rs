//! The engine as its clients meet it, the same for every body of the socket layer.

mod api_document;
mod api_guard;
mod api_ingest;
mod api_keys;
mod api_metrics;
mod api_port;
mod api_publish;
mod authentication;
mod bad_input;
mod bursts;
mod client_address;
mod command_rates;
mod common;
mod cross_shard;
mod hooks;
mod hostile_names;
mod hostile_readers;
mod portico;
mod publish_subscribe;
mod recovering;
mod recovery;
mod shutdown;
mod slow_handshakes;
mod slow_subscriber;
mod stalled;
mod users;
