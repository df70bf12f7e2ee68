//! Logs: to stderr, as JSON in a cluster and as text for a person.

use std::io::{IsTerminal, stderr};

use tracing_subscriber::{EnvFilter, fmt, layer::SubscriberExt, util::SubscriberInitExt};

/// Environment variable with the filter: `error` to `trace`, or directives such as `info,reveille=debug`.
pub const FILTER_VARIABLE: &str = "REVEILLE_LOG";
/// Environment variable with the format: `json` or `text`.
pub const FORMAT_VARIABLE: &str = "REVEILLE_LOG_FORMAT";

/// Why logging can't be set up.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    /// The filter can't be read.
    #[error("{FILTER_VARIABLE}={value:?}: {reason}")]
    Filter {
        /// As given.
        value: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The format is unknown.
    #[error("{FORMAT_VARIABLE}={0:?} is neither json nor text")]
    Format(String),
    /// A subscriber is installed already.
    #[error("logging is set up already")]
    Twice(#[from] tracing_subscriber::util::TryInitError),
}

/// kube's watcher logs each failure that it also returns, and we log it in our own words: once is enough.
fn quieter(filter: &str) -> String {
    if filter.contains("kube_runtime") {
        filter.to_owned()
    } else {
        format!("{filter},kube_runtime=error")
    }
}

/// Sets up logging for the process from the environment. Without a filter: `info`; without a format: text on a terminal,
/// else JSON.
pub fn init() -> Result<(), TelemetryError> {
    let set = |name| std::env::var(name).ok().filter(|value: &String| !value.is_empty());
    let filter = set(FILTER_VARIABLE).unwrap_or_else(|| "info".to_owned());
    let filter = EnvFilter::try_new(quieter(&filter)).map_err(|error| TelemetryError::Filter {
        value: filter.clone(),
        reason: error.to_string(),
    })?;
    let terminal = stderr().is_terminal();
    let json = match set(FORMAT_VARIABLE).as_deref() {
        None => !terminal,
        Some("json") => true,
        Some("text") => false,
        Some(other) => return Err(TelemetryError::Format(other.to_owned())),
    };
    let registry = tracing_subscriber::registry().with(filter);
    if json {
        let layer = fmt::layer().json().flatten_event(true).with_writer(stderr);
        registry.with(layer).try_init()?;
    } else {
        registry
            .with(fmt::layer().with_ansi(terminal).with_writer(stderr))
            .try_init()?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::quieter;

    #[test]
    fn a_filter_that_asks_for_kubes_words_gets_them() {
        assert_eq!(quieter("info"), "info,kube_runtime=error");
        assert_eq!(quieter("info,kube_runtime=debug"), "info,kube_runtime=debug");
    }
}
