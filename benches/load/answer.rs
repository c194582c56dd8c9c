//! The backend of opaque bytes: `load answer` sends back what comes.

use std::net::SocketAddr;

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::JoinSet,
};

/// More wait in the kernel's backlog.
const CONNECTIONS_MAX: usize = 20_000;

const BUFFER_BYTES: usize = 128 * 1024;

/// Until the process is ended.
pub(crate) fn run(listen: SocketAddr) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let listener = TcpListener::bind(listen).await?;
        let mut connections = JoinSet::new();
        loop {
            while connections.try_join_next().is_some() {}
            if connections.len() >= CONNECTIONS_MAX {
                connections.join_next().await;
            }
            let (socket, _) = listener.accept().await?;
            connections.spawn(echo(socket));
        }
    })
}

/// The sender counts: an error here is short there.
async fn echo(mut socket: TcpStream) -> std::io::Result<()> {
    socket.set_nodelay(true)?;
    let mut buffer = vec![0; BUFFER_BYTES];
    loop {
        let count = socket.read(&mut buffer).await?;
        if count == 0 {
            return socket.shutdown().await;
        }
        socket.write_all(&buffer[..count]).await?;
    }
}
