//! How ranks meet: all call rank 0, which tells each where the others listen; then every pair has a socket.
//!
//! ```text
//! rank 0                                     rank r
//!        ◄──────────────── hello ───────────  calls MASTER_ADDR:MASTER_PORT until it is let in
//! table ─────────────────────────────────►    says hello to ranks 1 to r - 1, lets in r + 1 to the last
//!        ◄──────────────── ready ───────────  has a socket to every other
//! go ────────────────────────────────────►    from here on all look after each other
//! ```
//!
//! Whoever finds that it cannot go on says so to rank 0, which tells all: every rank ends with the same reason.

use super::Rendezvous;
use super::door::{Caller, Door};
use super::error::TcpError;
use super::hello::{GO, Hello, PROTOCOL, READY, REFUSED, TABLE, TEXT, decode_table, encode_table, table_bytes};
use super::mail::{LOOK, Mail, Silence, tell_all};
use std::hash::{BuildHasher, Hasher, RandomState};
use std::io::{self, ErrorKind};
use std::net::{SocketAddr, TcpListener, TcpStream, ToSocketAddrs};
use std::thread::sleep;
use std::time::{Duration, Instant};

/// A socket to every other rank is a file of the process; systems allow it a thousand or some thousands.
const MOST: usize = 4096;
/// How long a rank that was let in waits beyond rank 0's patience, so that rank 0 is the one who says what is wrong.
const LONGER: Duration = Duration::from_secs(5);
/// How long one try to connect may take.
const TRY: Duration = Duration::from_secs(5);
/// How long until the next try.
const PAUSE: Duration = Duration::from_millis(50);

/// How long a rank that cannot connect waits for rank 0 to say why.
const WORD: Duration = Duration::from_millis(300);

type Streams = Vec<Option<TcpStream>>;

/// A socket to every other rank, none to this one.
///
/// Errors: why ranks do not meet, the same on all that are there.
pub(super) fn meet(r: &Rendezvous) -> Result<Streams, TcpError> {
    if r.ranks > MOST {
        return Err(TcpError::TooMany { ranks: r.ranks, most: MOST });
    }
    let addresses = resolve(r)?;
    if r.rank == 0 { Host::open(r, &addresses)?.meet() } else { Guest::call(r, &addresses)?.meet() }
}

fn resolve(r: &Rendezvous) -> Result<Vec<SocketAddr>, TcpError> {
    // "[::1]" as in URLs; the resolver takes it bare.
    let bare = r.host.trim_start_matches('[').trim_end_matches(']');
    let failed = |why: String| TcpError::Resolve { host: r.host.clone(), why };
    let found: Vec<SocketAddr> = (bare, r.port).to_socket_addrs().map_err(|e| failed(e.to_string()))?.collect();
    if found.is_empty() { Err(failed("it has none".into())) } else { Ok(found) }
}

fn socket(e: io::Error) -> TcpError {
    TcpError::Socket(e.to_string())
}

fn text(body: &[u8]) -> String {
    String::from_utf8_lossy(body).into_owned()
}

/// A text that a note holds.
fn cut(text: &str) -> &str {
    let end = (0..=text.len().min(TEXT)).rev().find(|n| text.is_char_boundary(*n)).unwrap_or(0);
    &text[..end]
}

/// Rank 0.
struct Host<'a> {
    r: &'a Rendezvous,
    door: Door,
    at: String,
    run: u64,
    seats: Vec<Option<Seat>>,
}

struct Seat {
    mail: Mail,
    /// Where it called from, and where it listens.
    from: SocketAddr,
    listens: SocketAddr,
    ready: bool,
}

impl<'a> Host<'a> {
    fn open(r: &'a Rendezvous, addresses: &[SocketAddr]) -> Result<Self, TcpError> {
        let at = format!("{}:{}", r.host, r.port);
        let listener = TcpListener::bind(addresses).map_err(|e| match e.kind() {
            ErrorKind::AddrInUse => TcpError::InUse { at: at.clone() },
            _ => TcpError::Listen { rank: 0, at: at.clone(), why: e.to_string() },
        })?;
        let door = Door::new(listener, r.ranks).map_err(socket)?;
        // Hashers are seeded at random: enough to tell two runs apart.
        let run = RandomState::new().build_hasher().finish().max(1);
        let seats = (0..r.ranks).map(|_| None).collect();
        Ok(Host { r, door, at, run, seats })
    }

    fn meet(mut self) -> Result<Streams, TcpError> {
        let met = self.gather().and_then(|()| self.release());
        if let Err(error) = met {
            let mut mails = self.seats.into_iter().flatten().map(|s| s.mail).collect();
            // What a rank says is passed on as it was said.
            let why = match &error {
                TcpError::Told { rank, why } => format!("rank {rank}: {why}"),
                other => other.to_string(),
            };
            tell_all(&mut mails, REFUSED, cut(&why));
            return Err(error);
        }
        Ok(self.seats.into_iter().map(|s| s.map(|s| s.mail.into_stream())).collect())
    }

    /// Waits until all have said hello.
    fn gather(&mut self) -> Result<(), TcpError> {
        let until = Instant::now() + self.r.patience;
        loop {
            for caller in self.door.callers().map_err(socket)? {
                self.seat(caller)?;
            }
            self.listen()?;
            let missing: Vec<usize> = (1..self.r.ranks).filter(|r| self.seats[*r].is_none()).collect();
            if missing.is_empty() {
                return Ok(());
            }
            if Instant::now() >= until {
                let strangers = match self.door.strangers() {
                    0 => String::new(),
                    1 => ", and one came that was no rank".into(),
                    n => format!(", and {n} came that were no ranks"),
                };
                let (ranks, seconds) = (self.r.ranks, self.r.patience.as_secs());
                return Err(TcpError::Missing { missing, ranks, at: self.at.clone(), seconds, strangers });
            }
            sleep(LOOK);
        }
    }

    fn seat(&mut self, Caller { stream, from, hello }: Caller) -> Result<(), TcpError> {
        let mut mail = Mail::new(stream).map_err(socket)?;
        let at = || from.to_string();
        let refused = match hello {
            Err(theirs) => TcpError::Protocol { at: at(), theirs, ours: PROTOCOL },
            // Of another run, whose rank 0 listened here before; or of none.
            Ok(hello) if hello.run != 0 || hello.rank == 0 || hello.rank >= hello.ranks => return Ok(()),
            Ok(hello) if hello.ranks != self.r.ranks => {
                TcpError::Size { rank: hello.rank, at: at(), theirs: hello.ranks, ours: self.r.ranks }
            }
            Ok(hello) => match &mut self.seats[hello.rank] {
                Some(first) => TcpError::Twice { rank: hello.rank, first: first.from.to_string(), second: at() },
                seat => {
                    let listens = SocketAddr::new(from.ip(), hello.port);
                    *seat = Some(Seat { mail, from, listens, ready: false });
                    return Ok(());
                }
            },
        };
        let _ = mail.say(REFUSED, cut(&refused.to_string()).as_bytes(), Instant::now());
        mail.finish();
        Err(refused)
    }

    /// Takes what seated ranks say.
    fn listen(&mut self) -> Result<(), TcpError> {
        for (rank, seat) in self.seats.iter_mut().enumerate() {
            let Some(seat) = seat else { continue };
            match seat.mail.note(TEXT) {
                Ok(None) => {}
                Ok(Some((READY, _))) => seat.ready = true,
                Ok(Some((REFUSED, why))) => return Err(TcpError::Told { rank, why: text(&why) }),
                Ok(Some(_)) | Err(Silence::Strange) => return Err(TcpError::Stranger { at: seat.from.to_string() }),
                Err(Silence::Ended) => return Err(TcpError::Left { rank }),
            }
        }
        Ok(())
    }

    /// Tells all where the others are, and lets them go when each has its sockets.
    fn release(&mut self) -> Result<(), TcpError> {
        let until = Instant::now() + self.r.patience;
        let own = self.door.address().map_err(socket)?;
        let places: Vec<SocketAddr> = self.seats.iter().map(|s| s.as_ref().map_or(own, |s| s.listens)).collect();
        self.tell(TABLE, &encode_table(self.run, &places), until)?;
        loop {
            self.listen()?;
            let waits = self.seats.iter().position(|s| s.as_ref().is_some_and(|s| !s.ready));
            match waits {
                None => return self.tell(GO, &[], until),
                Some(rank) if Instant::now() >= until => {
                    return Err(TcpError::Still { rank, seconds: self.r.patience.as_secs() });
                }
                Some(_) => sleep(LOOK),
            }
        }
    }

    fn tell(&mut self, kind: u8, body: &[u8], until: Instant) -> Result<(), TcpError> {
        for (rank, seat) in self.seats.iter_mut().enumerate() {
            if let Some(seat) = seat {
                seat.mail.say(kind, body, until).map_err(|_| TcpError::Left { rank })?;
            }
        }
        Ok(())
    }
}

/// Any other rank.
struct Guest<'a> {
    r: &'a Rendezvous,
    /// To rank 0.
    mail: Mail,
    door: Door,
    until: Instant,
    run: u64,
    places: Vec<SocketAddr>,
}

impl<'a> Guest<'a> {
    /// Calls rank 0 until it tells who the others are.
    fn call(r: &'a Rendezvous, addresses: &[SocketAddr]) -> Result<Self, TcpError> {
        let (start, at) = (Instant::now(), format!("{}:{}", r.host, r.port));
        let mut why = String::from("nothing was tried");
        for address in addresses.iter().cycle() {
            if start.elapsed() >= r.patience {
                break;
            }
            match TcpStream::connect_timeout(address, TRY) {
                Err(e) => why = e.to_string(),
                // A port of this machine may be connected to itself where nobody listens.
                Ok(stream) if stream.local_addr().ok() == stream.peer_addr().ok() => {}
                Ok(stream) => match Guest::let_in(r, stream, &at)? {
                    Some(guest) => return Ok(guest),
                    None => why = "it hung up".into(),
                },
            }
            sleep(PAUSE);
        }
        Err(TcpError::Unreachable { at, seconds: r.patience.as_secs(), why })
    }

    /// Says hello and waits for the table. None where rank 0 hangs up before: it may be an earlier run's, at its end.
    fn let_in(r: &'a Rendezvous, stream: TcpStream, at: &str) -> Result<Option<Self>, TcpError> {
        // Others reach this rank where it reaches rank 0.
        let mut here = stream.local_addr().map_err(socket)?;
        here.set_port(0);
        let listener = TcpListener::bind(here).map_err(|e| TcpError::Listen {
            rank: r.rank,
            at: here.to_string(),
            why: e.to_string(),
        })?;
        let door = Door::new(listener, r.ranks).map_err(socket)?;
        let port = door.address().map_err(socket)?.port();
        let mut mail = Mail::new(stream).map_err(socket)?;
        let until = Instant::now() + r.patience + LONGER;
        let hello = Hello { run: 0, ranks: r.ranks, rank: r.rank, port };
        if mail.write(&hello.encode(), until).is_err() {
            return Ok(None);
        }
        loop {
            match mail.note(table_bytes(r.ranks).max(TEXT)) {
                Ok(None) if Instant::now() < until => sleep(LOOK),
                Ok(None) => return Err(TcpError::Still { rank: 0, seconds: (r.patience + LONGER).as_secs() }),
                Ok(Some((TABLE, table))) => {
                    let known = decode_table(&table, r.ranks);
                    let (run, places) = known.ok_or_else(|| TcpError::Stranger { at: at.into() })?;
                    return Ok(Some(Guest { r, mail, door, until: Instant::now() + r.patience, run, places }));
                }
                Ok(Some((REFUSED, why))) => return Err(TcpError::Told { rank: 0, why: text(&why) }),
                Ok(Some(_)) | Err(Silence::Strange) => return Err(TcpError::Stranger { at: at.into() }),
                Err(Silence::Ended) => return Ok(None),
            }
        }
    }

    fn meet(mut self) -> Result<Streams, TcpError> {
        match self.pairs() {
            Ok(mut streams) => {
                if let Some(first) = streams.first_mut() {
                    *first = Some(self.mail.into_stream());
                }
                Ok(streams)
            }
            Err(error) => {
                // What rank 0 said it knows.
                if !matches!(error, TcpError::Told { .. }) {
                    tell_all(&mut vec![self.mail], REFUSED, cut(&error.to_string()));
                }
                Err(error)
            }
        }
    }

    fn pairs(&mut self) -> Result<Streams, TcpError> {
        let (rank, ranks) = (self.r.rank, self.r.ranks);
        let mut streams: Streams = (0..ranks).map(|_| None).collect();
        let hello = Hello { run: self.run, ranks, rank, port: 0 }.encode();
        for (other, stream) in streams.iter_mut().enumerate().take(rank).skip(1) {
            *stream = Some(self.connect(other, &hello)?);
        }
        loop {
            for Caller { stream, hello, .. } in self.door.callers().map_err(socket)? {
                // Who is not of this run is shown out.
                let Ok(hello) = hello else { continue };
                let ours = hello.run == self.run && hello.ranks == ranks && hello.rank > rank;
                if let Some(place @ None) = streams.get_mut(hello.rank).filter(|_| ours) {
                    *place = Some(Mail::new(stream).map_err(socket)?.into_stream());
                }
            }
            self.rank_zero()?;
            match streams.iter().skip(rank + 1).position(Option::is_none) {
                None => break,
                Some(n) if Instant::now() >= self.until => {
                    return Err(TcpError::Still { rank: rank + 1 + n, seconds: self.r.patience.as_secs() });
                }
                Some(_) => sleep(LOOK),
            }
        }
        self.mail.say(READY, &[], self.until).map_err(|_| TcpError::Left { rank: 0 })?;
        // Rank 0 ends its patience first.
        let until = self.until + LONGER;
        while !self.rank_zero()? {
            if Instant::now() >= until {
                return Err(TcpError::Still { rank: 0, seconds: (self.r.patience + LONGER).as_secs() });
            }
            sleep(LOOK);
        }
        Ok(streams)
    }

    /// A socket to a rank that lets this one in.
    fn connect(&mut self, rank: usize, hello: &[u8]) -> Result<TcpStream, TcpError> {
        let here = self.r.rank;
        let place = self.places.get(rank).copied();
        let at = place.ok_or_else(|| TcpError::Stranger { at: self.r.host.clone() })?;
        let left = self.until.saturating_duration_since(Instant::now()).clamp(LOOK, TRY);
        let made = TcpStream::connect_timeout(&at, left).and_then(|stream| {
            let mut mail = Mail::new(stream)?;
            mail.write(hello, self.until)?;
            Ok(mail.into_stream())
        });
        match made {
            Ok(stream) => Ok(stream),
            Err(e) => {
                // A rank that ended takes its door with it; rank 0 sees the end, and tells.
                let until = Instant::now() + WORD;
                while Instant::now() < until {
                    self.rank_zero()?;
                    sleep(LOOK);
                }
                Err(TcpError::Apart { here, rank, at: at.to_string(), why: e.to_string() })
            }
        }
    }

    /// Whether rank 0 says go.
    fn rank_zero(&mut self) -> Result<bool, TcpError> {
        match self.mail.note(TEXT) {
            Ok(None) => Ok(false),
            Ok(Some((GO, _))) => Ok(true),
            Ok(Some((REFUSED, why))) => Err(TcpError::Told { rank: 0, why: text(&why) }),
            Ok(Some(_)) | Err(Silence::Strange) => Err(TcpError::Stranger { at: self.r.host.clone() }),
            Err(Silence::Ended) => Err(TcpError::Left { rank: 0 }),
        }
    }
}
