//! Changes a parsed template so that `gotmpl` does what Go does with types:
//!
//! * `.a.b` becomes a call of [`FIELD`], for which a field of nil is an error;
//! * each printed value goes through [`PRINT`];
//! * each `define` begins with [`STEP`], so that templates that call templates come to an end.
//!
//! These functions have names that no template can write.

use std::{collections::BTreeSet, mem};

use gotmpl::parse::{
    ActionNode, BranchNode, CommandNode, DefineNode, Expr, ListNode, Node, PipeNode, Pos, SmolStr, TemplateNode,
};

/// Reads fields, one after the other: value, name, name...
pub(super) const FIELD: &str = "(field)";
/// Turns a value into the text that Go prints.
pub(super) const PRINT: &str = "(print)";
/// Counts one step, and prints nothing.
pub(super) const STEP: &str = "(step)";

/// What the text of a template tells.
#[derive(Debug, Default)]
pub(super) struct Seen {
    /// The functions that it names.
    pub(super) functions: BTreeSet<String>,
    /// The fields of the root that it reads, as paths.
    pub(super) reads: Vec<Vec<String>>,
    /// Those of which conditions only ask whether they are there.
    pub(super) asked: Vec<Vec<String>>,
}

/// Changes all trees. `strict`: a missing key is an error, so fields are read by [`FIELD`].
pub(super) fn rewrite(main: &mut ListNode, defined: &mut [DefineNode], strict: bool) -> Seen {
    let mut rewriter = Rewriter {
        strict,
        in_main: true,
        asks: false,
        seen: Seen::default(),
    };
    rewriter.list(main, true);
    rewriter.in_main = false;
    for define in defined {
        rewriter.list(&mut define.body, false);
        let step = call(define.pos, STEP, Vec::new());
        define.body.nodes.insert(
            0,
            Node::Action(ActionNode {
                pos: define.pos,
                pipe: step,
            }),
        );
    }
    rewriter.seen
}

struct Rewriter {
    strict: bool,
    /// Not in a `define`: `$` is the root of the data.
    in_main: bool,
    /// In a condition, where a value counts only as true or false.
    asks: bool,
    seen: Seen,
}

impl Rewriter {
    /// `root`: the dot is the root of the data here.
    fn list(&mut self, list: &mut ListNode, root: bool) {
        for node in &mut list.nodes {
            match node {
                Node::List(list) => self.list(list, root),
                Node::Action(ActionNode { pos, pipe }) => {
                    self.pipe(pipe, root);
                    if pipe.decl.is_empty() {
                        pipe.commands.push(command(*pos, PRINT, Vec::new()));
                    }
                }
                Node::If(branch) => self.branch(branch, root, root, true),
                Node::With(branch) => self.branch(branch, root, false, true),
                Node::Range(branch) => self.branch(branch, root, false, false),
                Node::Template(TemplateNode { pipe: Some(pipe), .. }) => self.pipe(pipe, root),
                Node::Text(_) | Node::Template(_) | Node::Define(_) | Node::Break(_) | Node::Continue(_) => {}
            }
        }
    }

    fn branch(&mut self, branch: &mut BranchNode, root: bool, body_root: bool, asks: bool) {
        self.asks = asks;
        self.pipe(&mut branch.pipe, root);
        self.asks = false;
        self.list(&mut branch.body, body_root);
        if let Some(body) = &mut branch.else_body {
            self.list(body, root);
        }
    }

    fn pipe(&mut self, pipe: &mut PipeNode, root: bool) {
        let asks = self.asks;
        let is_piped = pipe.commands.len() > 1;
        for command in &mut pipe.commands {
            self.asks = asks && !is_piped && keeps_truth(command);
            for expr in &mut command.args {
                self.expr(expr, root);
            }
        }
        self.asks = asks;
    }

    fn expr(&mut self, expr: &mut Expr, root: bool) {
        match expr {
            Expr::Identifier(_, name) => {
                self.seen.functions.insert(name.to_string());
            }
            Expr::Pipe(_, pipe) => self.pipe(pipe, root),
            Expr::Field(pos, path) => {
                let (pos, path) = (*pos, mem::take(path));
                self.read(root, &path);
                *expr = self.field(pos, Expr::Dot(pos), path, Expr::Field);
            }
            Expr::Variable(pos, name, path) if !path.is_empty() => {
                let (pos, name, path) = (*pos, name.clone(), mem::take(path));
                self.read(self.in_main && name == "$", &path);
                let variable = Expr::Variable(pos, name.clone(), Vec::new());
                *expr = self.field(pos, variable, path, |pos, path| Expr::Variable(pos, name, path));
            }
            Expr::Chain(pos, inner, path) => {
                self.expr(inner, root);
                // `f.x` calls f with the arguments that follow: its place must stay the first one.
                if !matches!(**inner, Expr::Identifier(..)) {
                    let (pos, path) = (*pos, mem::take(path));
                    let inner = mem::replace(&mut **inner, Expr::Nil(pos));
                    *expr = self.field(pos, inner.clone(), path, |pos, path| {
                        Expr::Chain(pos, Box::new(inner), path)
                    });
                }
            }
            Expr::Dot(_) | Expr::Variable(..) | Expr::String(..) | Expr::Number(..) | Expr::Bool(..) | Expr::Nil(_) => {
            }
        }
    }

    fn read(&mut self, root: bool, path: &[SmolStr]) {
        if root {
            let path = path.iter().map(ToString::to_string).collect();
            let list = if self.asks {
                &mut self.seen.asked
            } else {
                &mut self.seen.reads
            };
            list.push(path);
        }
    }

    /// The fields of `base`: strictly, or as the engine reads them.
    fn field(&self, pos: Pos, base: Expr, path: Vec<SmolStr>, plain: impl FnOnce(Pos, Vec<SmolStr>) -> Expr) -> Expr {
        if !self.strict {
            return plain(pos, path);
        }
        let names = path.iter().map(|name| Expr::String(pos, name.as_str().into()));
        let args = std::iter::once(base).chain(names).collect();
        Expr::Pipe(pos, call(pos, FIELD, args))
    }
}

/// Whether a command in a condition uses its arguments as true or false only.
fn keeps_truth(command: &CommandNode) -> bool {
    match command.args.first() {
        Some(Expr::Identifier(_, name)) => matches!(name.as_str(), "and" | "or" | "not"),
        _ => command.args.len() == 1,
    }
}

fn call(pos: Pos, function: &'static str, args: Vec<Expr>) -> PipeNode {
    PipeNode {
        pos,
        decl: Vec::new(),
        commands: vec![command(pos, function, args)],
        is_assign: false,
    }
}

fn command(pos: Pos, function: &'static str, mut args: Vec<Expr>) -> CommandNode {
    args.insert(0, Expr::Identifier(pos, SmolStr::new_static(function)));
    CommandNode { pos, args }
}
