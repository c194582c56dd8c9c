//! `heddle token`: proof of a workload's identity, for its first contact.

use std::collections::HashMap;

use heddle_proto::v1::{
    MintTokenRequest, certificate_authority_client::CertificateAuthorityClient,
};
use serde_json::json;

use crate::{
    connect::Target,
    failure::Failure,
    output::{self, Format},
};

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Service account the token proves.
    service_account: String,

    /// Its namespace.
    #[arg(short, long, default_value = "default")]
    namespace: String,

    /// Label fixed in the token; policies select by these. May be given several times.
    #[arg(short, long = "label", value_name = "KEY=VALUE", value_parser = label)]
    labels: Vec<(String, String)>,

    /// Address (or CIDR) the workload may register besides the one it calls from. May be given
    /// several times.
    #[arg(long = "address")]
    addresses: Vec<String>,

    /// Lifetime in hours.
    #[arg(long, default_value_t = 24, value_parser = clap::value_parser!(u32).range(1..))]
    hours: u32,
}

pub(crate) async fn run(target: &Target, format: Format, args: Args) -> Result<(), Failure> {
    let request = MintTokenRequest {
        namespace: args.namespace,
        service_account: args.service_account,
        labels: HashMap::from_iter(args.labels),
        addresses: args.addresses,
        lifetime_ms: u64::from(args.hours) * 3_600_000,
    };
    let minted = CertificateAuthorityClient::new(target.administrator().await?)
        .mint_token(request)
        .await
        .map_err(Failure::of(&target.server))?
        .into_inner();
    match format {
        // The token alone on standard output, to be redirected into a file.
        Format::Table => {
            output::line(&minted.token);
            output::complain(&format!(
                "root sha256:{}; valid for {}",
                minted.root_sha256,
                output::from_now(minted.not_after_ms)
            ));
        }
        Format::Json | Format::Yaml => {
            let text = output::data(
                format,
                &json!({
                    "token": minted.token,
                    "rootSha256": minted.root_sha256,
                    "notAfterMs": minted.not_after_ms,
                }),
            )?;
            output::line(text.trim_end());
        }
    }
    Ok(())
}

fn label(text: &str) -> Result<(String, String), String> {
    text.split_once('=')
        .filter(|(key, _)| !key.is_empty())
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .ok_or_else(|| "is not of the form KEY=VALUE".to_owned())
}
