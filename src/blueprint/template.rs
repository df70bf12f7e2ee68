//! Go's text/template over the params: parsed by `gotmpl`, with the functions that published Blueprints use, and with bounds.
//!
//! `gotmpl` runs a template over untyped maps. Three things that depend on Go's types are put right by changing the parsed tree
//! ([`rewrite`]): reading a field of what is nil is an error, values are printed as Go prints them, and each step is counted.

mod blocks;
mod environment;
mod functions;
mod go_time;
mod go_value;
mod rewrite;

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use gotmpl::{MissingKey, TemplateError, parse::Parser};

pub(super) use self::{
    environment::Environment,
    go_value::{from_json, print, to_json},
};

/// The longest template, rendered text and value in between, in bytes. etcd holds no object larger than that.
const MAX_TEXT: usize = 2 << 20;
/// How many rounds all loops of one template may make.
const MAX_ROUNDS: u64 = 100_000;
/// How much one template may do: each call costs [`CALL`] and the size of what it is given.
const MAX_WORK: u64 = 256 << 20;
/// What a call costs, whatever it is given.
const CALL: u64 = 1 << 10;
/// The name of the main template; it shows in no message.
const MAIN: &str = "config";

/// Which functions there are, and what a missing key means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mode {
    /// Arguments of a phase: a missing key is an error.
    Params,
    /// A condition of `Wait`: the same functions; what is missing is empty.
    Wait,
    /// A condition of `WaitV2`: few functions; what is missing is empty.
    WaitV2,
}

/// A parsed template. All functions that it names exist.
#[derive(Debug)]
pub(super) struct Template {
    mode: Mode,
    main: gotmpl::parse::ListNode,
    defined: Vec<gotmpl::parse::DefineNode>,
    /// Which fields of the root it reads, wherever that can be seen from the text.
    pub(super) reads: Vec<Vec<String>>,
    /// Those of which conditions only ask whether they are there.
    pub(super) asked: Vec<Vec<String>>,
}

impl Template {
    /// Parses one text. The error names the place in it, and a function that does not exist.
    pub(super) fn parse(source: &str, mode: Mode) -> Result<Self, String> {
        if source.len() > MAX_TEXT {
            return Err(format!("the text is longer than {MAX_TEXT} bytes"));
        }
        let parsed = Parser::new(source, "{{", "}}").and_then(Parser::parse);
        let (mut main, mut defined) = parsed.map_err(|error| describe(&error))?;
        blocks::check(source)?;
        let seen = rewrite::rewrite(&mut main, &mut defined, mode == Mode::Params);
        for function in &seen.functions {
            functions::known(function, mode)?;
        }
        let template = Self {
            mode,
            main,
            defined,
            reads: seen.reads,
            asked: seen.asked,
        };
        template.engine(Context::default())?;
        Ok(template)
    }

    /// Renders it. The error never repeats a value of the environment.
    pub(super) fn render(&self, environment: &Environment) -> Result<String, String> {
        let engine = self.engine(Context {
            zeros: environment.zeros.clone(),
            now: environment.now,
            work: Arc::new(Work::default()),
        })?;
        let mut output = Output(String::new());
        engine
            .execute_template_fmt(&mut output, MAIN, &environment.root)
            .map_err(|error| describe(&error))?;
        Ok(output.0)
    }

    fn engine(&self, context: Context) -> Result<gotmpl::Template, String> {
        let mut engine = gotmpl::Template::new(MAIN)
            .missing_key(match self.mode {
                Mode::Params => MissingKey::Error,
                Mode::Wait | Mode::WaitV2 => MissingKey::ZeroValue,
            })
            .max_range_iters(MAX_ROUNDS)
            .funcs(functions::table(self.mode, &Arc::new(context)))
            .add_parse_tree(MAIN, self.main.clone());
        for (index, define) in self.defined.iter().enumerate() {
            let earlier = self.defined.iter().take(index);
            if define.name == MAIN || earlier.clone().any(|other| other.name == define.name) {
                return Err(format!("the template {:?} is defined twice", define.name));
            }
            engine = engine.add_parse_tree(&define.name, define.body.clone());
        }
        Ok(engine)
    }
}

/// What the functions of one rendering share.
#[derive(Clone, Debug, Default)]
struct Context {
    zeros: environment::Zeros,
    now: jiff::Timestamp,
    work: Arc<Work>,
}

/// Counts what a rendering does, so that none goes on for ever.
#[derive(Debug, Default)]
struct Work(AtomicU64);

impl Work {
    fn take(&self, amount: usize) -> Result<(), String> {
        let amount = u64::try_from(amount).unwrap_or(u64::MAX);
        if self.0.fetch_add(amount.saturating_add(CALL), Ordering::Relaxed) > MAX_WORK {
            return Err("it does too much: loops or nested templates without an end?".to_owned());
        }
        Ok(())
    }
}

/// The rendered text, as long as it is not too long.
struct Output(String);

impl fmt::Write for Output {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        if self.0.len() + text.len() > MAX_TEXT {
            return Err(fmt::Error);
        }
        self.0.push_str(text);
        Ok(())
    }
}

/// The engine's error in words for a person. It names keys, types and places, never values.
fn describe(error: &TemplateError) -> String {
    match error {
        TemplateError::Parse { line, col, message, .. } | TemplateError::Lex { line, col, message, .. } => {
            format!("line {line}, column {col}: {message}")
        }
        TemplateError::Exec(message) => message.clone(),
        TemplateError::MissingKey { key } => format!("{key:?} not found"),
        TemplateError::Write => format!("the rendered text is longer than {MAX_TEXT} bytes"),
        TemplateError::RangeIterLimit => format!("its loops make more than {MAX_ROUNDS} rounds"),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests;
