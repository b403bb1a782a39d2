from mtvlib.report_text import _reserved


def test_what_a_cluster_reserved_is_summed_over_steps_and_tries():
    fold = {"seconds": 60.0, "peak_memory_mb": 900, "jobs": 2, "cpu_hours": 6.0, "gpu_hours": 1.5, "energy_kwh": 1.0}
    local = {"seconds": 9.0, "peak_memory_mb": 4000}
    evaluation = {"seconds": 9.0, "peak_memory_mb": 300, "jobs": 1, "cpu_hours": 0.25, "gpu_hours": 0.0}
    steps = {"2_train_fold_0": fold, "evaluation": evaluation, "manifest": local}
    assert _reserved({"steps": steps}) == (
        "A cluster ran 2 steps in 3 jobs: 6.25 CPU-hours and 1.5 GPU-hours, 1 kWh; the largest process took 900 MB."
    )
    assert _reserved({"steps": {"evaluation": evaluation}}).endswith("Its energy is not known.")


def test_a_study_of_one_computer_has_no_such_sentence():
    assert _reserved({"steps": {"1_cohort": {"seconds": 9.0, "peak_memory_mb": 300}}}) == ""
    assert _reserved({}) == ""
