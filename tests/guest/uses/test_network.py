"""Network cards in use: each use refused with its reason; when it has ended, the card claimed, used and given back."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from pyiommufd import DMABuffer, HostDevice, list_devices
from pyiommufd.host import uses
from pyiommufd.host.standing import Standing, standings
from pyiommufd.testing.e1000e import E1000eDriver
from tests.guest.uses.types import Driven, Refused, Runner
from tests.patience import until

GATEWAY = "10.0.2.2"
"""What answers on the network of the first card."""


@pytest.fixture(scope="session")
def cards() -> list[HostDevice]:
    return [one for one in list_devices("pci") if one.driver == "e1000e"]


@pytest.fixture
def card(cards: list[HostDevice]) -> HostDevice:
    """One with a network."""
    return cards[0]


@pytest.fixture
def interface(card: HostDevice, run: Runner) -> Iterator[str]:
    (name,) = (path.name for path in (card.sys_path / "net").iterdir())
    yield name
    run("ip", "address", "flush", "dev", name)
    run("ip", "link", "set", name, "down")
    assert uses.refusals(card) == ()


def test_idle_card_is_claimed_used_and_given_back(
    card: HostDevice, interface: str, run: Runner, driven: Driven
) -> None:
    def answers() -> bool:
        return (
            subprocess.run(["/.guest/busybox", "ping", "-c", "1", "-W", "2", GATEWAY], capture_output=True).returncode
            == 0
        )

    def set_up() -> None:
        run("ip", "address", "add", "10.0.2.15/24", "dev", interface)
        run("ip", "link", "set", interface, "up")

    set_up()
    assert until(answers)
    assert [refusal.kind for refusal in uses.refusals(card)] == ["address"]
    run("ip", "link", "set", interface, "down")
    assert uses.refusals(card) == ()
    memory = DMABuffer(2 * 4096)
    memory[:512] = b"s" * 512
    with driven(card) as (device, ioas):
        mapping = ioas.map(memory)
        with E1000eDriver(device, ioas) as driver:
            driver.copy(mapping.iova, mapping.iova + 4096, 512)
        mapping.unmap()
    assert memory[4096 : 4096 + 512] == b"s" * 512
    until((card.sys_path / "net" / interface).is_dir)
    set_up()
    assert "10.0.2.15/24" in run("ip", "address", "show", "dev", interface)
    assert until(answers)


def test_default_route_and_address(card: HostDevice, interface: str, run: Runner, refused: Refused) -> None:
    run("ip", "link", "set", interface, "up")
    assert uses.refusals(card) == ()
    run("ip", "address", "add", "169.254.7.7/16", "dev", interface)
    assert uses.refusals(card) == ()
    run("ip", "address", "add", "192.0.2.1/24", "dev", interface)
    address = (card.name, "address", f"{interface} is up, with the address 192.0.2.1/24")
    assert refused(card) == [address]
    run("ip", "route", "add", "default", "via", "192.0.2.2", "dev", interface)
    assert refused(card) == [(card.name, "default-route", f"the default route leaves by {interface}"), address]
    assert standings(list_devices())[card] == Standing.IN_USE


def test_default_route_of_another_table(card: HostDevice, interface: str, run: Runner) -> None:
    """`/proc/net/route` does not show it."""
    run("ip", "link", "set", interface, "up")
    run("ip", "address", "add", "192.0.2.1/24", "dev", interface)
    run("ip", "route", "add", "default", "via", "192.0.2.2", "dev", interface, "table", "77")
    assert "default-route" in {refusal.kind for refusal in uses.refusals(card)}
    run("ip", "route", "flush", "table", "77")


def test_default_route_by_two_cards(card: HostDevice, cards: list[HostDevice], interface: str, run: Runner) -> None:
    (other,) = (path.name for path in (cards[1].sys_path / "net").iterdir())
    ways = []
    try:
        for number, name in enumerate((interface, other)):
            run("ip", "link", "set", name, "up")
            run("ip", "address", "add", f"2001:db8:{number}::1/64", "dev", name, "nodad")
            ways += ["nexthop", "via", f"2001:db8:{number}::2", "dev", name]
        run("ip", "route", "add", "default", *ways)
        for one in cards:
            assert "default-route" in {refusal.kind for refusal in uses.refusals(one)}
    finally:
        run("ip", "address", "flush", "dev", other)
        run("ip", "link", "set", other, "down")


def test_default_route_of_ipv6(card: HostDevice, interface: str, run: Runner, refused: Refused) -> None:
    run("ip", "link", "set", interface, "up")
    run("ip", "address", "add", "2001:db8::1/64", "dev", interface, "nodad")
    run("ip", "route", "add", "default", "via", "2001:db8::2", "dev", interface)
    assert refused(card) == [
        (card.name, "default-route", f"the IPv6 default route leaves by {interface}"),
        (card.name, "address", f"{interface} is up, with the address 2001:db8::1/64"),
    ]


@pytest.mark.parametrize("kind", ["bond", "bridge"])
def test_member(card: HostDevice, interface: str, run: Runner, refused: Refused, kind: str) -> None:
    run("ip", "link", "add", "above", "type", kind)
    try:
        run("ip", "link", "set", interface, "down")
        run("ip", "link", "set", interface, "master", "above")
        member = (card.name, kind, f"its interface {interface} is in the {kind} above")
        assert refused(card) == [member]
        run("ip", "link", "set", "above", "up")
        run("ip", "address", "add", "192.0.2.1/24", "dev", "above")
        run("ip", "route", "add", "default", "via", "192.0.2.2", "dev", "above")
        assert refused(card) == [
            member,
            (card.name, "default-route", f"the default route leaves by above, above {interface}"),
            (card.name, "address", f"above, above {interface} is up, with the address 192.0.2.1/24"),
        ]
    finally:
        run("ip", "link", "delete", "above")


def test_interface_in_another_network_namespace(
    card: HostDevice, interface: str, run: Runner, refused: Refused
) -> None:
    with subprocess.Popen(
        ["unshare", "--net", "sh", "-c", "echo there; exec cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"there\n"
        run("ip", "link", "set", interface, "netns", str(other.pid))
        ((_, kind, reason),) = refused(card)
        assert kind == "held"
        assert "another network namespace" in reason
        assert standings(list_devices())[card] == Standing.IN_USE
        assert other.stdin is not None
        other.stdin.close()
    until(Path("/sys/class/net", interface).exists)
