//! The ports: opened, or refused with the key, the address and what may help.

use std::io;
use std::net::{SocketAddr, TcpListener};

use socket2::{Domain, Socket, Type};

use super::ServeError;
use crate::config::Config;

/// One listener of several on the same port: the kernel spreads connections over them.
pub(super) fn bind_public(address: SocketAddr, config: &Config) -> Result<TcpListener, ServeError> {
    let bind = || -> io::Result<TcpListener> {
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
        socket.set_reuse_address(true)?;
        socket.set_reuse_port(true)?;
        // Accepted sockets inherit both.
        socket.set_tcp_nodelay(true)?;
        if config.server.send_buffer_bytes > 0 {
            socket.set_send_buffer_size(config.server.send_buffer_bytes as usize)?;
        }
        socket.bind(&address.into())?;
        socket.listen(i32::try_from(config.server.backlog).unwrap_or(i32::MAX))?;
        Ok(socket.into())
    };
    bind().map_err(|e| bind_error("server.listen", address, e))
}

/// With SO_REUSEPORT a second server of the same user would silently share the port with the first:
/// a bind without it tells.
pub(super) fn check_free(address: SocketAddr) -> Result<(), ServeError> {
    let bind = || -> io::Result<()> {
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
        socket.set_reuse_address(true)?;
        socket.bind(&address.into())
    };
    bind().map_err(|e| bind_error("server.listen", address, e))
}

pub(super) fn bind_internal(address: SocketAddr) -> Result<TcpListener, ServeError> {
    TcpListener::bind(address).map_err(|e| bind_error("api.listen", address, e))
}

pub(super) fn bind_error(key: &'static str, address: SocketAddr, cause: io::Error) -> ServeError {
    let hint = match cause.kind() {
        io::ErrorKind::AddrInUse => "; another process listens there: choose another port",
        io::ErrorKind::PermissionDenied => "; ports below 1024 need CAP_NET_BIND_SERVICE",
        io::ErrorKind::AddrNotAvailable => "; this machine has no such address",
        _ => "",
    };
    ServeError::Bind { key, address, cause, hint }
}
