//! RBAC filters -> [`Rules`]. Everything here is security: what is not understood is a fault.

use heddle_proto::xds::google::protobuf::Any;

use crate::authz::Rules;

use super::fault::{Faults, Path};

/// The rules of the filters before the last one of a chain.
pub(super) fn rules(filters: &[(usize, Any)], at: &Path<'_>, faults: &mut Faults) -> Rules {
    for (i, any) in filters {
        faults.refuse(&at.index(*i), format!("{} is not supported", any.type_url));
    }
    Rules::default()
}
