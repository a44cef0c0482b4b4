"""A headless Chromium on Dagster's web interface: find by what a user reads, click, wait."""

import contextlib
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self, TypeVar

import pytest

if TYPE_CHECKING:
    from selenium.webdriver.remote.webelement import WebElement

SCREENSHOTS_VARIABLE = "CDC_UI_SCREENSHOTS"
_WIDTH, _HEIGHT = 1600, 1300
_T = TypeVar("_T")
_WAIT_SECONDS = 20
_POLL_SECONDS = 0.1
_ARGUMENTS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--no-proxy-server",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--force-color-profile=srgb",
)


class Browser:
    """One browser with a profile of its own; when its block fails, it leaves a screenshot."""

    def __init__(self, address: str, folder: Path) -> None:
        self._address = address
        self._folder = folder
        self._driver: Any = None

    def __enter__(self) -> Self:
        self._driver = _start(self._folder / "profile")
        self._driver.execute_cdp_cmd(
            "Emulation.setDeviceMetricsOverride",
            {"width": _WIDTH, "height": _HEIGHT, "deviceScaleFactor": 1, "mobile": False},
        )
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if error is not None:
                self._leave_evidence()
        finally:
            self._driver.quit()

    def open(self, path: str) -> None:
        self._driver.get(self._address + path)

    def see(self, xpath: str, *, seconds: float = _WAIT_SECONDS) -> "WebElement":
        """The first visible element, as soon as there is one."""
        return self._until(lambda: self._visible(xpath), f"nothing visible at {xpath}", seconds)

    def click(self, xpath: str, *, seconds: float = _WAIT_SECONDS) -> None:
        """Click the first visible and enabled element, as soon as nothing covers it."""
        self._until(lambda: self._clicked(xpath), f"nothing to click at {xpath}", seconds)

    @property
    def path(self) -> str:
        """Of the page that is open."""
        return self._driver.current_url.removeprefix(self._address)

    def click_button(self, text: str, *, within: str = "") -> None:
        self.click(f"{within}//button[normalize-space()='{text}' and not(@disabled)]")

    def press_alt(self, key: str) -> None:
        from selenium.webdriver.common.action_chains import ActionChains
        from selenium.webdriver.common.keys import Keys

        chain = ActionChains(self._driver)
        chain.key_down(Keys.ALT).send_keys(key).key_up(Keys.ALT).perform()

    def picture(self, name: str) -> None:
        """Save what is seen now, if screenshots were asked for."""
        wanted = os.environ.get(SCREENSHOTS_VARIABLE)
        if wanted:
            time.sleep(1)  # dialogs fade in
            folder = Path(wanted)
            folder.mkdir(parents=True, exist_ok=True)
            self._driver.save_screenshot(str(folder / f"{name}.png"))

    def _visible(self, xpath: str) -> "WebElement | Literal[False]":
        found = self._driver.find_elements("xpath", xpath)
        return next((element for element in found if element.is_displayed()), False)

    def _clicked(self, xpath: str) -> bool:
        element = self._visible(xpath)
        if not element or not element.is_enabled():
            return False
        element.click()
        return True

    def _until(
        self, attempt: Callable[[], _T | Literal[False]], complaint: str, seconds: float
    ) -> _T:
        """Try until the answer is true. The page may redraw an element while we look at it."""
        from selenium.common.exceptions import (
            ElementClickInterceptedException,
            ElementNotInteractableException,
            StaleElementReferenceException,
            TimeoutException,
        )
        from selenium.webdriver.support.ui import WebDriverWait

        redrawn = (
            ElementClickInterceptedException,
            ElementNotInteractableException,
            StaleElementReferenceException,
        )
        waiting = WebDriverWait(self._driver, seconds, _POLL_SECONDS, ignored_exceptions=redrawn)
        try:
            return waiting.until(lambda _: attempt())
        except TimeoutException:
            raise AssertionError(
                f"{complaint} within {seconds:g} s on {self._driver.current_url}"
            ) from None

    def _leave_evidence(self) -> None:
        folder = Path(tempfile.mkdtemp(prefix="cdc-ui-failure-"))
        print(f"\nWhat the browser showed, and Dagster's output: {folder}")
        with contextlib.suppress(Exception):
            self._driver.save_screenshot(str(folder / "page.png"))
            (folder / "page.html").write_text(self._driver.page_source, "utf-8")
        for log in self._folder.glob("*.log"):
            shutil.copy(log, folder)


def _start(profile: Path) -> Any:
    try:
        from selenium import webdriver
        from selenium.webdriver.chrome.service import Service
    except ModuleNotFoundError:
        pytest.fail("selenium is not installed: pip install 'cdc-pipeline[ui]'", pytrace=False)
    options = webdriver.ChromeOptions()
    options.binary_location = _program("CHROMIUM", "chromium", "apt install chromium")
    service = Service(_program("CHROMEDRIVER", "chromedriver", "apt install chromium-driver"))
    for argument in (
        *_ARGUMENTS,
        f"--window-size={_WIDTH},{_HEIGHT}",
        f"--user-data-dir={profile}",
    ):
        options.add_argument(argument)
    return webdriver.Chrome(options, service)


def _program(variable: str, name: str, fix: str) -> str:
    """Both are found here, because selenium would go and download what it misses."""
    wanted = os.environ.get(variable) or name
    found = shutil.which(wanted)
    if not found:
        pytest.fail(f"{wanted} was not found: {fix}, or set {variable} to its path", pytrace=False)
    return found
