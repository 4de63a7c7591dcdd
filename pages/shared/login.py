"""The login of a shared server: Streamlit's own, with OpenID Connect."""

from pathlib import Path
from typing import Any

import streamlit as st
from streamlit.errors import StreamlitSecretNotFoundError
from streamlit.runtime.scriptrunner import get_script_run_ctx

from pages.shared.plain import plain
from swm.workspace.people import Person, identify_by

STRANGER = "not logged in"  # owns nothing; is shown no page either


def require_login() -> None:
    """Stop the page unless the user is logged in; only if Streamlit's secrets have an [auth] section (OpenID Connect).

    A list `allowed` of e-mail addresses in a section [swm] admits only those. Secrets that cannot be read admit nobody.
    """
    try:
        secrets = dict(st.secrets)
    except StreamlitSecretNotFoundError:
        if any(Path(file).expanduser().exists() for file in st.get_option("secrets.files")):
            st.error("Cannot read the login settings (secrets.toml). Correct the file and reload this page.")
            st.stop()
        return
    if "auth" not in secrets:
        return
    if not st.user.get("is_logged_in", False):
        st.title("Sliding-Window Merging Studio", anchor=False)
        if st.button("Log in", type="primary", icon=":material/login:"):
            st.login()
        st.stop()
    allowed, email = _listed("allowed"), st.user.get("email")
    listed = isinstance(allowed, list) and email in allowed
    if allowed is not None and (not listed or st.user.get("email_verified") is False):
        st.error(
            f"{plain(str(email))} may not use this server. Ask its administrator for access.",
            icon=":material/block:",
        )
        if st.button("Log out"):
            st.logout()
        st.stop()
    if st.sidebar.button("Log out", icon=":material/logout:"):
        st.logout()


def _has_login() -> bool:
    try:
        return "auth" in st.secrets
    except StreamlitSecretNotFoundError:
        return False


def _listed(name: str) -> Any:
    """A list of e-mail addresses in the secrets' section [swm]; None if it is not there."""
    return st.secrets.get("swm", {}).get(name)


def visitor() -> Person:
    """Who looks at the page that is drawn now: nobody in particular where there is no login, or outside a page."""
    if get_script_run_ctx(suppress_warning=True) is None:
        return Person()
    if not st.user.get("is_logged_in", False):
        return Person(STRANGER) if _has_login() else Person()
    proved = st.user.get("email_verified") is not False  # anybody could claim an address that is not theirs
    name, admins = str((proved and st.user.get("email")) or st.user.get("sub")), _listed("admins")
    return Person(name, isinstance(admins, list) and name in admins)


identify_by(visitor)
