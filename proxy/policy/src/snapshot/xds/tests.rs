use super::*;

#[test]
fn listener_names_have_one_form() {
    for name in ["out/10.0.0.1:80", "out/[fd00::1]:80", "host/web.shop:80"] {
        let key = DestinationKey::from_listener_name(name).unwrap();
        assert_eq!(key.listener_name(), name);
    }
    for name in [
        "out/10.0.0.1",
        "out/[fd00:0::1]:80",
        "out/10.0.0.1:080",
        "host/Web:80",
        "host/:80",
        "web:80",
        "",
    ] {
        assert_eq!(DestinationKey::from_listener_name(name), None, "{name}");
    }
}
