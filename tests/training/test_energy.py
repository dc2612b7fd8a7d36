from peftkit.training.energy import EnergyMeter


def test_processor_packages_are_added_up_also_when_their_counters_start_again(tmp_path):
    for zone, start in (("intel-rapl:0", 900_000_000), ("intel-rapl:1", 5_000_000), ("intel-rapl:0:0", 1)):
        (tmp_path / zone).mkdir()
        (tmp_path / zone / "energy_uj").write_text(f"{start}\n")
        (tmp_path / zone / "max_energy_range_uj").write_text("1000000000\n")
    meter = EnergyMeter(tmp_path)
    assert meter.joules()["cpu"] == 0.0
    (tmp_path / "intel-rapl:1" / "energy_uj").write_text("7000000")
    assert meter.joules()["cpu"] == 2.0
    (tmp_path / "intel-rapl:0" / "energy_uj").write_text("50000000")
    assert meter.joules()["cpu"] == 152.0


def test_where_no_hardware_tells_nothing_is_told(tmp_path):
    assert "cpu" not in EnergyMeter(tmp_path).joules()
