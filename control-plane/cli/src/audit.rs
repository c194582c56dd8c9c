//! `heddle audit`: who changed what, and who was refused what.

use heddle_proto::v1::{
    AuditEvent, AuditRequest, audit_event::Action, config_client::ConfigClient,
};
use serde_json::{Value, json};

use crate::{
    connect::Target,
    failure::Failure,
    output::{self, Format, Report},
};

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// How many events, the newest first.
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..))]
    limit: u32,

    /// Only what begins with this, such as `VirtualService`, `Workload shop/` or a SPIFFE id.
    #[arg(long, default_value = "")]
    subject: String,
}

pub(crate) async fn run(target: &Target, format: Format, args: Args) -> Result<(), Failure> {
    let mut config = ConfigClient::new(target.administrator().await?);
    let limit = usize::try_from(args.limit).unwrap_or(usize::MAX);
    let events = target
        .pages(limit, async |page_token| {
            let request = AuditRequest {
                limit: args.limit,
                subject: args.subject.clone(),
                page_token,
            };
            let page = config.audit(request).await?.into_inner();
            Ok((page.events, page.next_page_token))
        })
        .await?;
    output::print(
        format,
        &Report {
            heading: &["AGO", "WHO", "ACTION", "SUBJECT", "REASON"],
            rows: events.iter().map(row).collect(),
            data: events.iter().map(data).collect(),
            when_empty: "nothing was changed or refused yet",
        },
    )
}

fn row(event: &AuditEvent) -> Vec<String> {
    vec![
        output::ago(event.at_ms),
        event.who.clone(),
        word(event.action()).to_owned(),
        event.subject.clone(),
        event.reason.clone().unwrap_or_default(),
    ]
}

fn data(event: &AuditEvent) -> Value {
    json!({
        "atMs": event.at_ms,
        "who": event.who,
        "action": word(event.action()),
        "subject": event.subject,
        "before": event.before,
        "after": event.after,
        "reason": event.reason,
    })
}

fn word(action: Action) -> &'static str {
    match action {
        Action::Unspecified => "unknown",
        Action::Created => "created",
        Action::Updated => "updated",
        Action::Deleted => "deleted",
        Action::Refused => "refused",
        Action::Denied => "denied",
        Action::Allowed => "allowed",
        Action::Minted => "minted",
        Action::Revoked => "revoked",
    }
}
