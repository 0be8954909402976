//! Where ranks knock: connections that say hello are let in, all others are shown out and hold nobody up.

use super::hello::{HELLO, Heard, Hello};
use std::io::{self, ErrorKind, Read};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

/// How long a connection may take to say hello.
const PATIENCE: Duration = Duration::from_secs(5);
/// How many may stand there without a word, beside the ranks.
const STRANGERS: usize = 64;

pub(super) struct Door {
    listener: TcpListener,
    waiting: Vec<Knock>,
    most: usize,
    strangers: usize,
}

struct Knock {
    stream: TcpStream,
    from: SocketAddr,
    said: Vec<u8>,
    since: Instant,
}

/// Who said hello.
pub(super) struct Caller {
    pub stream: TcpStream,
    pub from: SocketAddr,
    /// What it said; else the protocol that it speaks.
    pub hello: Result<Hello, u32>,
}

impl Door {
    /// Errors: the socket cannot be set up.
    pub fn new(listener: TcpListener, ranks: usize) -> io::Result<Door> {
        listener.set_nonblocking(true)?;
        Ok(Door { listener, waiting: vec![], most: ranks + STRANGERS, strangers: 0 })
    }

    pub fn address(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// How many came that were no ranks.
    pub fn strangers(&self) -> usize {
        self.strangers
    }

    /// Who has said hello since.
    ///
    /// Errors: nobody can be let in any more: the process has no room for sockets.
    pub fn callers(&mut self) -> io::Result<Vec<Caller>> {
        self.let_in()?;
        let mut callers = vec![];
        for mut knock in std::mem::take(&mut self.waiting) {
            match knock.heard() {
                Heard::More if knock.since.elapsed() < PATIENCE => self.waiting.push(knock),
                Heard::More | Heard::Strange => self.strangers += 1,
                Heard::Other(protocol) => callers.push(knock.caller(Err(protocol))),
                Heard::Hello(hello) => callers.push(knock.caller(Ok(hello))),
            }
        }
        Ok(callers)
    }

    fn let_in(&mut self) -> io::Result<()> {
        loop {
            match self.listener.accept() {
                Ok((stream, from)) => {
                    if stream.set_nonblocking(true).is_ok() {
                        self.waiting.push(Knock { stream, from, said: vec![], since: Instant::now() });
                    }
                }
                Err(e) if e.kind() == ErrorKind::WouldBlock => return Ok(()),
                // Who knocked is gone already.
                Err(e) if matches!(e.kind(), ErrorKind::ConnectionAborted | ErrorKind::Interrupted) => {}
                Err(e) => return Err(e),
            }
            // The longest there without a word goes.
            if self.waiting.len() > self.most {
                self.waiting.remove(0);
                self.strangers += 1;
            }
        }
    }
}

impl Knock {
    fn heard(&mut self) -> Heard {
        let mut some = [0; HELLO];
        loop {
            let heard = Hello::decode(&self.said);
            if heard != Heard::More {
                return heard;
            }
            match self.stream.read(&mut some[..HELLO - self.said.len()]) {
                Ok(0) => return Heard::Strange,
                Ok(n) => self.said.extend_from_slice(&some[..n]),
                Err(e) if e.kind() == ErrorKind::WouldBlock => return Heard::More,
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(_) => return Heard::Strange,
            }
        }
    }

    fn caller(self, hello: Result<Hello, u32>) -> Caller {
        Caller { stream: self.stream, from: self.from, hello }
    }
}
