//! Our server.

use std::io::IoSlice;

use heddle_relay::{
    event::{Event, Then},
    h2::{Connection, Limits, Role, Upgrade},
    head::{Head, Heads},
    input::Input,
};

use crate::Heard;

pub(crate) fn hear(bytes: &[u8]) -> Heard {
    #[expect(clippy::disallowed_methods, reason = "any instant does")]
    let now = std::time::Instant::now();
    let limits = Limits {
        upgrade: Upgrade::ExtendedConnect,
        ..Limits::of_mesh()
    };
    let mut connection = Connection::new(Role::Server, &limits, now);
    let mut heads = Heads::default();
    let mut heard = Heard::default();
    let mut input = Input::lent(bytes);
    while let Ok(Some(event)) = connection.receive(&mut input, &mut heads, now) {
        take(&mut heard, &mut connection, &event);
    }
    let mut output = Vec::new();
    while !connection.output().is_empty() {
        let mut places = [IoSlice::new(&[]); 64];
        let used = connection.output().slices(&mut places);
        let places: Vec<&[u8]> = places[..used].iter().map(|place| &**place).collect();
        let bytes = places.concat();
        connection.output().consume(bytes.len());
        output.extend(bytes);
    }
    heard.frames(&output);
    heard
}

fn take(heard: &mut Heard, connection: &mut Connection, event: &Event<'_>) {
    match event {
        Event::Head { stream, head, then } => {
            let it = heard.streams.entry(stream.0).or_default();
            it.head = fields(head);
            it.is_ended = *then == Then::End;
        }
        Event::Data {
            stream,
            data,
            credit,
            then,
        } => {
            let it = heard.streams.entry(stream.0).or_default();
            it.body.extend_from_slice(data.as_slice());
            it.is_ended = *then == Then::End;
            connection.release(*stream, *credit);
        }
        Event::Trailers { stream, head } => {
            let it = heard.streams.entry(stream.0).or_default();
            it.trailers = Some(fields(head));
            it.is_ended = true;
        }
        Event::Interim { .. }
        | Event::Reset { .. }
        | Event::Writable { .. }
        | Event::Goodbye { .. }
        | Event::Pong
        | Event::TooLarge { .. }
        | Event::StreamsMax(_) => {}
    }
}

fn fields(head: &Head) -> Vec<(String, Vec<u8>)> {
    let fields = head.iter().map(|field| {
        let name = String::from_utf8_lossy(field.name).into_owned();
        (name, field.value.to_vec())
    });
    let mut fields: Vec<_> = fields.collect();
    fields.sort();
    fields
}
