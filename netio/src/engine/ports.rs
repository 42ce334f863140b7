//! Ports: opened, served, and taken away; what they have out, and whether they receive.
//!
//! A source is *armed* while the kernel has a request that receives for it. It is armed again when it has
//! stopped and nothing speaks against it: its port is not being taken away, has not its share out, and there
//! are buffers. What stops for another reason than a lack of buffers is tried again a second later.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::atomic::Ordering::Relaxed;

use ext_api::abi::NetAddress;

use super::datagrams::Socket;
use super::driver::{Driver, Source};
use super::{Engine, Kind, OUT_MAX, Port, SHARE, Sandbox, Waiting, add};
use crate::address::Address;
use crate::listen;

impl<D: Driver, S: Sandbox> Engine<D, S> {
    /// Serve `fd` by `handler` as port `number`; by processes that [`Engine::sit`] there if it is 0.
    ///
    /// # Errors
    /// There is no such number, it is in use, or the kind does not fit the descriptor.
    pub fn open(
        &mut self,
        number: usize,
        kind: Kind,
        handler: u64,
        fd: Option<OwnedFd>,
    ) -> io::Result<()> {
        let needs_fd = kind != Kind::AnyUdp;
        let is_free = self.ports.get(number).is_some_and(Option::is_none);
        if !is_free || fd.is_some() != needs_fd {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let tally = self.buffers.tally(number);
        // What a former owner had went with it.
        [&tally.open, &tally.buffers].iter().for_each(|now| now.store(0, Relaxed));
        let local = fd
            .as_ref()
            .map_or(NetAddress::default(), |fd| Address::of_socket(fd.as_raw_fd(), false).net());
        self.ports[number] = Some(Port {
            kind,
            handler,
            seats: VecDeque::new(),
            fd,
            interface: None,
            local,
            tally,
            socket: None,
            out: 0,
            is_paused: false,
            is_armed: false,
            is_closing: false,
        });
        if handler != 0 {
            self.begin(number as u32);
        }
        Ok(())
    }

    /// Should the interface of port `number` be removed, serve the next one of this name.
    pub fn stays_with(&mut self, number: usize, interface: String) {
        if let Some(Some(port)) = self.ports.get_mut(number) {
            port.interface = Some(interface);
        }
    }

    /// Begin to receive for it, unless it does.
    pub(super) fn begin(&mut self, number: u32) {
        let Some(port) = &mut self.ports[number as usize] else { return };
        if port.kind != Kind::Tcp && port.socket.is_none() && port.fd.is_some() {
            port.socket = Some(self.sockets.insert(Socket::of_port(number)) as u32);
        }
        match port.socket {
            Some(socket) => self.arm_socket(socket),
            None => self.arm_listener(number),
        }
    }

    fn arm_listener(&mut self, number: u32) {
        let Some(port) = &mut self.ports[number as usize] else { return };
        let Some(fd) = port.fd.as_ref().filter(|_| port.kind == Kind::Tcp) else { return };
        if !port.is_closing && !std::mem::replace(&mut port.is_armed, true) {
            self.driver.accept(number, fd.as_fd());
        }
    }

    /// Receive datagrams, of a port or of a flow.
    pub(super) fn arm_socket(&mut self, socket: u32) {
        let Some(known) = self.sockets.get(socket as usize) else { return };
        if self.is_without_interface(known.port) {
            return;
        }
        let Some(known) = self.sockets.get_mut(socket as usize) else { return };
        let port = self.ports[known.port as usize].as_ref();
        let own = port.filter(|port| !port.is_closing && !port.is_paused);
        let own = own.and_then(|port| port.fd.as_ref());
        let was_armed = known.is_armed;
        let fd = if known.is_flow() { known.flow_fd() } else { own };
        if let Some(fd) = fd.filter(|_| !was_armed) {
            self.driver.receive_from(socket, fd.as_fd());
            known.is_armed = true;
        }
    }

    /// Of interfaces that were down, stop to receive from those that have been removed: their sockets say once that
    /// they are down, and then nothing more, though there be others of their names.
    pub(super) fn look_for_removed(&mut self) {
        let ports = &self.ports;
        let its = |number: u32| ports[number as usize].as_ref().and_then(|port| port.fd.as_ref());
        self.down.retain(|number| its(*number).is_some());
        let removed = |number: &u32| its(*number).is_some_and(listen::has_lost_its);
        let removed: Vec<u32> = self.down.iter().copied().filter(removed).collect();
        for number in removed {
            if let Some(source) = self.armed_source(number) {
                self.driver.stop(source);
            }
        }
    }

    /// Has the port's interface been removed?
    fn is_without_interface(&mut self, number: u32) -> bool {
        let Some(port) = &self.ports[number as usize] else { return false };
        let its = port.fd.as_ref().filter(|_| port.kind == Kind::Interface);
        let is_without = its.is_some_and(listen::has_lost_its);
        if is_without && !self.gone.contains(&number) {
            self.gone.push(number);
            self.removed.push(number);
        }
        is_without
    }

    /// Receive again from those of which there is one of the same name now.
    pub(super) fn look_for_returned(&mut self) {
        for number in std::mem::take(&mut self.gone) {
            let Some(port) = &self.ports[number as usize] else { continue };
            let (Some(fd), false) = (&port.fd, port.is_closing) else { continue };
            let name = port.interface.as_deref();
            if name.is_some_and(|name| listen::take_interface(fd, name).is_ok()) {
                self.begin(number);
            } else {
                self.gone.push(number);
            }
        }
    }

    /// Serve port `number` no longer. Connections are cut; what other processes have of it is dropped
    /// when it comes back.
    pub fn close(&mut self, number: usize) {
        let Some(Some(port)) = self.ports.get_mut(number) else { return };
        if std::mem::replace(&mut port.is_closing, true) {
            return;
        }
        let own = number as u32;
        self.give_up(own);
        self.cut_connections_of(own);
        self.close_flows_of(own);
        match self.armed_source(own) {
            Some(source) => self.driver.stop(source),
            None => self.forget_port(own),
        }
        self.forget_those_over();
    }

    /// What other processes have of a port, or are to have, is nobody's any more when it comes back.
    fn give_up(&mut self, number: u32) {
        let (its, others) =
            std::mem::take(&mut self.waiting).into_iter().partition(|it| it.handed.port == number);
        self.waiting = others;
        let its: Vec<Waiting> = its;
        for Waiting { lease, handed, .. } in its {
            self.come_in(number);
            self.lose(lease, &handed);
        }
        for index in 0..self.handed.len() {
            let Some(handed) = self.handed[index].take_if(|handed| handed.port == number) else {
                continue;
            };
            self.come_in(number);
            if let Some(connection) = handed.connection {
                match handed.seat {
                    Some((seat, _)) => drop(self.is_back_from_process(connection, seat)),
                    None => self.is_no_longer_handed(connection),
                }
            }
        }
    }

    /// What the kernel receives for.
    fn armed_source(&self, number: u32) -> Option<Source> {
        let port = self.ports[number as usize].as_ref()?;
        let is_armed =
            |socket: &u32| self.sockets.get(*socket as usize).is_some_and(|it| it.is_armed);
        let socket = port.socket.filter(is_armed).map(Source::Datagrams);
        socket.or(port.is_armed.then_some(Source::Listener(number)))
    }

    /// Nothing of it is with the kernel any more.
    pub(super) fn forget_port(&mut self, number: u32) {
        if self.armed_source(number).is_some() {
            return;
        }
        let Some(port) = &mut self.ports[number as usize] else { return };
        if let Some(socket) = port.socket.take() {
            self.sockets.try_remove(socket as usize);
        }
        if let Some(fd) = port.fd.take() {
            self.driver.release(fd.as_fd());
        }
        self.paused -= usize::from(std::mem::take(&mut port.is_paused));
        if port.out == 0 && !self.connections.iter().any(|(_, one)| one.port == number) {
            self.ports[number as usize] = None;
        }
    }

    /// Is port `number` served, or still being taken away?
    #[must_use]
    pub fn is_open(&self, number: usize) -> bool {
        self.ports.get(number).is_some_and(Option::is_some)
    }

    /// As what port `number` is served, and by which handler; None once it is being taken away.
    #[must_use]
    pub fn served(&self, number: usize) -> Option<(Kind, u64)> {
        let port = self.ports.get(number)?.as_ref().filter(|port| !port.is_closing)?;
        Some((port.kind, port.handler))
    }

    /// A source receives no longer.
    pub(super) fn stopped(&mut self, source: Source, result: i32) {
        let number = match source {
            Source::Stream(connection) => return self.stream_stopped(connection, result),
            Source::Listener(number) => {
                let Some(port) = &mut self.ports[number as usize] else { return };
                port.is_armed = false;
                number
            }
            Source::Datagrams(socket) => {
                let Some(known) = self.sockets.get_mut(socket as usize) else { return };
                known.is_armed = false;
                if known.is_flow() {
                    return self.flow_stopped(socket);
                }
                known.port
            }
        };
        let for_now = matches!(-result, 0 | libc::ENOBUFS | libc::ECANCELED | libc::EINTR);
        match &mut self.ports[number as usize] {
            Some(port) if port.is_closing => self.forget_port(number),
            // It goes on when buffers have come back.
            Some(Port { is_paused: true, .. }) | None => {}
            Some(_) if for_now => self.starved.push(source),
            // No descriptor is free for a connection, or something as lasting.
            Some(port) => {
                if port.kind == Kind::Interface && !self.down.contains(&number) {
                    self.down.push(number);
                }
                self.failed.push(source);
            }
        }
    }

    /// Ports whose interface has been removed since this was last asked.
    pub fn take_removed(&mut self) -> Vec<u32> {
        std::mem::take(&mut self.removed)
    }

    /// Have those receive again that had no buffer, or were paused.
    pub(super) fn resume(&mut self) {
        for source in std::mem::take(&mut self.starved) {
            if self.has_a_buffer_for(source) {
                self.receive_again(source);
            } else {
                // All the buffers may be with readers that read nothing: no piece comes then that would say so.
                self.is_pressed |= self.is_kept_waiting(source);
                self.starved.push(source);
            }
        }
        if self.paused == 0 {
            return;
        }
        for number in 0..self.ports.len() as u32 {
            let Some(port) = &mut self.ports[number as usize] else { continue };
            if port.is_paused && port.out < SHARE / 2 && !port.is_closing {
                port.is_paused = false;
                self.paused -= 1;
                self.begin(number);
            }
        }
    }

    /// Try again what has failed a while ago.
    pub(super) fn try_failed(&mut self) {
        self.starved.append(&mut self.failed);
    }

    fn has_a_buffer_for(&self, source: Source) -> bool {
        if self.needs_wide(source) {
            return self.buffers.wide_free() + self.driver.lent_wide() > 0;
        }
        self.buffers.free() + self.driver.lent() > 0
    }

    /// Is it received into wide buffers?
    pub(super) fn needs_wide(&self, source: Source) -> bool {
        let socket = match source {
            Source::Datagrams(socket) => self.sockets.get(socket as usize),
            Source::Listener(_) | Source::Stream(_) => None,
        };
        let port = socket.and_then(|socket| self.ports[socket.port as usize].as_ref());
        port.is_some_and(|port| port.kind == Kind::Udp)
    }

    fn receive_again(&mut self, source: Source) {
        match source {
            Source::Stream(connection) => self.is_fed(connection),
            Source::Listener(number) => self.arm_listener(number),
            Source::Datagrams(socket) => self.arm_socket(socket),
        }
    }

    /// A buffer of `port`'s is out, or a spill of its handler's.
    pub(super) fn go_out(&mut self, number: u32) {
        let Some(port) = &mut self.ports[number as usize] else { return };
        port.out += 1;
        self.out += 1;
        port.tally.buffers.store(port.out as u64, Relaxed);
        if port.out >= SHARE && !port.is_paused && port.kind != Kind::Tcp {
            port.is_paused = true;
            self.paused += 1;
            add(&port.tally.paused, 1);
            let socket = port.socket.filter(|socket| self.sockets[*socket as usize].is_armed);
            if let Some(socket) = socket {
                self.driver.stop(Source::Datagrams(socket));
            }
        }
    }

    /// It is back.
    pub(super) fn come_in(&mut self, number: u32) {
        let Some(port) = &mut self.ports[number as usize] else { return };
        port.out -= 1;
        self.out -= 1;
        port.tally.buffers.store(port.out as u64, Relaxed);
        if port.is_closing && port.fd.is_none() {
            self.forget_port(number);
        }
    }

    /// Has the port its share out, or have all together theirs?
    pub(super) fn is_at_its_share(&self, number: u32) -> bool {
        let port = self.ports[number as usize].as_ref();
        self.out >= OUT_MAX || port.is_none_or(|port| port.out >= SHARE)
    }
}
