"""Explains failed TLS connections, with the remedy."""

from __future__ import annotations

import ssl

EXPIRED, NOT_YET, WRONG_NAME, WRONG_ADDRESS = 10, 9, 62, 64
"""OpenSSL's codes of certificate errors (X509_V_ERR_…); all others concern the issuer."""


def explained(error: BaseException, variable: str, authority: str) -> str | None:
    """Returns the cause and the remedy; None if TLS did not fail.

    Args:
        variable: The setting that holds the URL.
        authority: The URL parameter that names the trusted certificate authority.
    """
    failed = _tls_error(error)
    if failed is None:
        return None
    if not isinstance(failed, ssl.SSLCertVerificationError):
        return f"the TLS handshake failed ({failed.reason or failed}): check that the port in {variable} speaks TLS"
    reason = failed.verify_message or failed.reason
    if failed.verify_code in (WRONG_NAME, WRONG_ADDRESS):
        return f"its certificate is for another host ({reason}): use the certificate's host name in {variable}"
    if failed.verify_code in (EXPIRED, NOT_YET):
        return f"its certificate is not valid now ({reason}): renew it, or set this machine's clock"
    return f"its certificate is not trusted ({reason}): set {authority}=FILE in {variable} to that of its authority"


def _tls_error(error: BaseException | None) -> ssl.SSLError | None:
    """Finds the TLS error behind a driver's error."""
    while error is not None and not isinstance(error, ssl.SSLError):
        error = error.__cause__ or error.__context__
    return error
