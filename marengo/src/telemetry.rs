//! The log: lines for people, or one JSON object a line. Both go to standard error.

use std::{
    fmt::{self, Write as _},
    io,
    time::Instant,
};

use tracing::{
    Event, Level, Subscriber,
    field::{Field, Visit},
};
use tracing_subscriber::{
    EnvFilter, Layer as _,
    fmt::{FmtContext, FormatEvent, FormatFields, format::Writer},
    layer::SubscriberExt as _,
    registry::LookupSpan,
    util::SubscriberInitExt as _,
};

use crate::values::LogFormat;

/// Starts the log. `MARENGO_LOG` (a filter as in `RUST_LOG`) wins over `debug`.
pub(crate) fn start(debug: bool, format: LogFormat) {
    // netlink-proto warns of each report that comes while a connection closes.
    let default = if debug {
        "info,netlink_proto=error,marengo=debug,marengo_core=debug,marengo_ebpf=debug"
    } else {
        "info,netlink_proto=error"
    };
    let filter = EnvFilter::try_from_env("MARENGO_LOG").unwrap_or_else(|_| EnvFilter::new(default));
    let layer = tracing_subscriber::fmt::layer().with_writer(io::stderr);
    let layer = match format {
        LogFormat::Text => layer.event_format(Lines { start: Instant::now() }).boxed(),
        LogFormat::Json => layer.json().flatten_event(true).boxed(),
    };
    // Fails only if a log was started before, as a test may have.
    tracing_subscriber::registry().with(filter).with(layer).try_init().ok();
}

/// `INFO[0012] message                      key=value`: level, seconds since the start, what, with
/// what.
#[derive(Debug)]
struct Lines {
    start: Instant,
}

/// The column at which the fields start.
const FIELDS_AT: usize = 44;

impl<S, N> FormatEvent<S, N> for Lines
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        _: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let mut line = Line::default();
        event.record(&mut line);
        let level = match *event.metadata().level() {
            Level::ERROR => "ERRO",
            Level::WARN => "WARN",
            Level::INFO => "INFO",
            Level::DEBUG => "DEBU",
            Level::TRACE => "TRAC",
        };
        let seconds = self.start.elapsed().as_secs();
        let text = format!("{level}[{seconds:04}] {:FIELDS_AT$}{}", line.message, line.fields);
        writeln!(writer, "{}", text.trim_end())
    }
}

/// An event's message and fields.
#[derive(Default)]
struct Line {
    message: String,
    fields: String,
}

impl Visit for Line {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.push(field, value);
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.push(field, &format!("{value:?}"));
    }
}

impl Line {
    fn push(&mut self, field: &Field, value: &str) {
        // Line breaks in a value, a peer's name in an error say, must not look like other lines.
        let value = value.replace(['\n', '\r'], " ");
        if field.name() == "message" {
            self.message = value;
        } else if field.name().starts_with("log.") {
            // Where a line of the `log` crate came from: of no use to an operator.
        } else if value.is_empty() || value.contains([' ', '"', '=']) {
            write!(self.fields, " {}={value:?}", field.name()).ok();
        } else {
            write!(self.fields, " {}={value}", field.name()).ok();
        }
    }
}
