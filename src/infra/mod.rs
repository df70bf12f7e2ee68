//! What both servers stand on: logs, health, metrics, shutdown, clients, clock, certificates, leader election.

pub mod ca_file;
pub mod ca_store;
pub mod clock;
pub mod health;
pub mod kube;
pub mod lease;
pub mod lent_token;
pub mod metrics;
pub mod pki;
pub mod pod_edit;
pub mod policies;
pub mod shutdown;
pub(crate) mod slots;
pub mod supervise;
pub mod telemetry;
pub mod watchdog;
