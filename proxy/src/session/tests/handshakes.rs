//! How large a handshake may be.

use rustls::crypto::aws_lc_rs::kx_group::{X25519, X25519MLKEM768};

use super::*;

/// A message that declares as much as rustls takes, in records of one byte each.
fn endless(kind: u8) -> Vec<u8> {
    let message = [kind, 0, 0xff, 0xff].into_iter().chain([0; 0xffff]);
    let records = message.flat_map(|byte| [22, 3, 3, 0, 1, byte]);
    records.collect()
}

#[tokio::test]
async fn a_message_of_many_small_records_is_refused_when_it_gets_too_large() {
    // Whose turn it is: a ClientHello, a ServerHello.
    for (role, kind) in [(Role::Server, 1), (Role::Client, 2)] {
        let (client, server) = configs();
        let (near, mut far) = sockets().await;
        let records = endless(kind);
        let sending = async {
            // We may have closed already.
            _ = far.write_all(&records).await;
        };
        let handshake = ours(role, &client, &server);
        let (shaken, ()) = tokio::join!(Box::pin(shake(handshake, near)), sending);
        let error = shaken.unwrap_err();
        let expected = Error::General("the handshake is too large".to_owned());
        assert_eq!(tls_error(&error), &expected, "{role:?}");
    }
}

/// Two key shares, one of them for a time of quantum computers, and many protocols.
fn large(client: &Arc<ClientConfig>, fragment_size: Option<usize>) -> Arc<ClientConfig> {
    let mut large = ClientConfig::clone(client);
    large.alpn_protocols = (0..32).map(|n| vec![b'a' + n % 26; 250]).collect();
    large.max_fragment_size = fragment_size;
    Arc::new(large)
}

#[tokio::test]
async fn a_large_hello_in_small_records_is_taken() {
    for fragment_size in [None, Some(100)] {
        let (client, server) = configs_with(vec![X25519MLKEM768, X25519]);
        let client = large(&client, fragment_size);
        let (near, far) = sockets().await;
        let tls = ClientConnection::new(Arc::clone(&client), name()).unwrap();
        let mut peer = Peer {
            tls: Box::new(tls.into()),
            socket: far,
            _config: Arc::clone(&client),
        };
        let hello = peer.records();
        assert!((9_000..12_000).contains(&hello.len()), "{}", hello.len());
        peer.socket.write_all(&hello).await.unwrap();
        let shaking = Box::pin(shake(ours(Role::Server, &client, &server), near));
        let (session, ()) = tokio::join!(shaking, peer.shake());
        peer.send(b"after it").await;
        assert_eq!(receive(&mut session.unwrap()).await.unwrap(), b"after it");
    }
}
