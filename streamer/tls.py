"""Why a TLS connection did not come about, in words that say what to do."""

from __future__ import annotations

import ssl

EXPIRED, NOT_YET, WRONG_NAME, WRONG_ADDRESS = 10, 9, 62, 64
"""OpenSSL's numbers of what is wrong with a certificate (X509_V_ERR_…); those left are about who signed it."""


def trouble(error: BaseException, variable: str, authority: str) -> str | None:
    """What is wrong and how to mend it, or None where TLS is not what failed.

    `variable` is the setting with the URL, `authority` its parameter for the certificate of whom to trust.
    """
    failed = _of(error)
    if failed is None:
        return None
    if not isinstance(failed, ssl.SSLCertVerificationError):
        return f"no TLS came about ({failed.reason or failed}): check that it speaks TLS on the port in {variable}"
    said = failed.verify_message or failed.reason
    if failed.verify_code in (WRONG_NAME, WRONG_ADDRESS):
        return f"its certificate is another host's ({said}): name it in {variable} as its certificate does"
    if failed.verify_code in (EXPIRED, NOT_YET):
        return f"its certificate is not valid now ({said}): renew it, or set this machine's clock"
    return f"its certificate is not trusted ({said}): name the one of its authority by {authority}=FILE in {variable}"


def _of(error: BaseException | None) -> ssl.SSLError | None:
    """The TLS error behind an error; drivers wrap it."""
    while error is not None and not isinstance(error, ssl.SSLError):
        error = error.__cause__ or error.__context__
    return error
