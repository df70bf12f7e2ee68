//! One connection's clocks: a request that has begun must get on, and a client must take its answer; only an idle connection
//! may wait.
//!
//! hyper has one timer for both, reading a head and lying idle between requests, so that timer is set to the idle time and
//! the stricter ones live here.

use std::{
    future::Future,
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{Instant, Sleep, sleep_until},
};

/// Whether a request is being answered. Shared by the stream and the service on top of it.
#[derive(Clone, Debug, Default)]
pub struct Answering(Arc<AtomicBool>);

impl Answering {
    /// The head has arrived: `true`; the answer is made: `false`.
    pub fn set(&self, answering: bool) {
        self.0.store(answering, Ordering::Release);
    }

    fn get(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }
}

/// A stream that fails with `TimedOut` when a request's head or an answer gets stuck.
#[derive(Debug)]
pub struct Timed<S> {
    stream: S,
    answering: Answering,
    head: Duration,
    write: Duration,
    reading: Option<Pin<Box<Sleep>>>,
    writing: Option<Pin<Box<Sleep>>>,
}

impl<S> Timed<S> {
    /// `head`: from a request's first byte to the end of its head. `write`: without a byte taken.
    pub fn new(stream: S, answering: Answering, head: Duration, write: Duration) -> Self {
        Self {
            stream,
            answering,
            head,
            write,
            reading: None,
            writing: None,
        }
    }

    /// Bounds how long one write stays pending.
    fn bounded<T>(&mut self, cx: &mut Context, poll: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if poll.is_ready() {
            self.writing = None;
            return poll;
        }
        let until = self.write;
        let timer = self.writing.get_or_insert_with(|| timer(until));
        ready!(timer.as_mut().poll(cx));
        Poll::Ready(Err(stuck("the client does not take its answer")))
    }
}

fn timer(duration: Duration) -> Pin<Box<Sleep>> {
    Box::pin(sleep_until(Instant::now() + duration))
}

fn stuck(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, what)
}

impl<S: AsyncRead + Unpin> AsyncRead for Timed<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context, buffer: &mut ReadBuf) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.answering.get() {
            this.reading = None;
        }
        let before = buffer.filled().len();
        if let Poll::Ready(result) = Pin::new(&mut this.stream).poll_read(cx, buffer) {
            if buffer.filled().len() > before && !this.answering.get() {
                let head = this.head;
                this.reading.get_or_insert_with(|| timer(head));
            }
            return Poll::Ready(result);
        }
        if let Some(timer) = &mut this.reading {
            ready!(timer.as_mut().poll(cx));
            return Poll::Ready(Err(stuck("the request does not get on")));
        }
        Poll::Pending
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Timed<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let poll = Pin::new(&mut this.stream).poll_write(cx, bytes);
        this.bounded(cx, poll)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let poll = Pin::new(&mut this.stream).poll_flush(cx);
        this.bounded(cx, poll)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let poll = Pin::new(&mut this.stream).poll_shutdown(cx);
        this.bounded(cx, poll)
    }

    fn poll_write_vectored(self: Pin<&mut Self>, cx: &mut Context, all: &[io::IoSlice]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let poll = Pin::new(&mut this.stream).poll_write_vectored(cx, all);
        this.bounded(cx, poll)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}
